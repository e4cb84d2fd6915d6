"""Settings of the vocabulary sweep."""

from typing import Annotated

from pydantic import Field

from groundup.core.config import ContextLength, Positive, Section
from groundup.tokenizer.config import Vocabulary


class VocabularySweepConfig(Section):
    sizes: Annotated[list[Vocabulary], Field(min_length=1, max_length=100)] = [1024, 2048, 4096, 8192, 16_384]
    depth: Annotated[int, Field(gt=0, le=126)] = 2  # of the small model that every size trains
    tokens: Positive = 2_000_000  # what the smallest size trains on; the others get equal compute
    context_length: ContextLength = 256
    held_out_kb: Positive = 1000
    text_mb: Positive = 256  # a random sample of the corpus
