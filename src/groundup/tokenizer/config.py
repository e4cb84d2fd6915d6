"""The tokenizer's settings."""

from typing import Annotated

from pydantic import Field

from groundup.core.config import Section

# At most 2^20: four times the largest in use (Gemma's 262,144), and merging takes one pass over the counts for each.
Vocabulary = Annotated[int, Field(ge=260, le=2**20)]


class TokenizerConfig(Section):
    vocabulary: Vocabulary = 4096  # 260: every byte a token, nothing merged
    folder: str = ""  # take the tokenizer of this folder instead, as base.start_from needs; empty: train one


class TokensConfig(Section):
    pass
