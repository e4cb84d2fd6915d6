"""A corpus to token files: shards in parallel, each kept until all are finished, then joined.

The ids are those of `Tokenizer.encode`, whichever library computes them. gigatoken is many times as fast as tiktoken, but
young: it is used where it is installed and gives the same ids on a sample of the corpus itself and on text that is
hard to cut. The choice is made once, before any work, and logged.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.executor import cores, pool
from groundup.core.files import digest
from groundup.core.progress import Progress
from groundup.core.seals import is_sealed, seal
from groundup.data import token_files
from groundup.data.readers import Refused
from groundup.tokenizer import documents
from groundup.tokenizer.documents import Shard
from groundup.tokenizer.library import LibraryTokenizer
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Encode = Callable[[list[str]], Sequence[np.ndarray]]

PART = re.compile(r".+-[0-9a-f]{16}-.+\.(?:bin|idx)(?:\.seal)?(?:\.partial)?", re.DOTALL)
SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 50, 20_000
HARD = [
    "",
    "   leading, trailing   ",
    "I'LL say it's 1234567 o'clock, 3.14159!\r\n\r\n\n",
    "def f(x):\n        if x:\n\t\treturn  x ** 2   # 漢字\n",
    "👩‍👩‍👧 漢字かな 한국어 العربية e\u0301 \u00a0\u3000 \x00'ſ",
    "<|im_start|>user<|im_end|><|endoftext|>",
    "a" * 3000 + " " * 3000 + "\n" * 300,
]


def encode_corpus(
    folder: Path, inputs: Sequence[Path], out: Path, split: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Write `out`.bin and .idx with the ids of all documents of the inputs, in order, each encoded by `Tokenizer.document`.

    `folder` holds the tokenizer. Shards encoded before a kill are in `out`.parts and used again; it is removed at the
    end. The bytes do not depend on `workers`. Raises UserError when the inputs hold no documents, or `out`.parts holds
    files that are not ours.
    """
    tokenizer = of_model(folder)
    shards = documents.find(inputs)
    sample = [text[:SAMPLE_CHARACTERS] for text in islice(documents.texts(shards, split), SAMPLE_DOCUMENTS)]
    if not sample:
        raise UserError(f"no documents{f' of split {split!r}' if split else ''} in {', '.join(map(str, inputs))}")
    library, reason = choose(tokenizer, sample)
    logger.info(f"encoding with {library}: {reason}")
    key = digest(folder / "tokenizer.json")
    parts = out.with_name(out.name + ".parts")
    foreign = [path.name for path in parts.iterdir() if not PART.fullmatch(path.name)] if parts.is_dir() else []
    if foreign:  # everything in the folder is removed at the end
        raise UserError(f"{parts}: holds {min(foreign)}, which is not ours; move it away, or give another name to write")
    stems = [parts / f"{shard.name}-{key[:16]}-{split or 'all'}" for shard in shards]
    todo = {
        stem: (folder, key, library, shard, split, stem)
        for shard, stem in zip(shards, stems, strict=True)
        if not all(map(is_sealed, _files(stem)))
    }
    workers = workers or max(1, min(cores(), len(todo)))
    label, done = "encoding", len(shards) - len(todo)
    with pool(workers) as started, Progress(label, len(shards), "shards", done) as progress:
        refused = Refused()
        for passed_over in started.spread(encode_shard, todo.values()):
            progress.advance()
            refused.merge(passed_over)
    if refused:
        logger.warning(f"passed over: {refused}")
    token_files.join(out, stems, token_files.dtype_for(tokenizer.size))
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()
    written = token_files.TokenFile(out)
    tokens = len(written.tokens) - len(written) * len(tokenizer.document([]))  # without those that begin and end texts
    size = int(tokenizer.bytes_per_token[written.tokens].sum())
    return {
        "tokens_file": f"{out}.bin",
        "documents": len(written),
        "tokens": len(written.tokens),
        "bytes": size,
        "bytes_per_token": size / max(tokens, 1),
        "library": library,
        "reason": reason,
        "same_as_tokenizers": agrees_with_tokenizers(tokenizer, sample),
    }


def choose(tokenizer: Tokenizer, sample: Sequence[str]) -> tuple[str, str]:
    """The fastest library that gives our ids for the sample and HARD: its name, and the reason."""
    if isinstance(tokenizer, LibraryTokenizer):
        return "tokenizers", "it is of other makers"
    try:
        candidate_ids = _gigatoken(tokenizer)([*sample, *HARD])
    except ImportError:
        return "tiktoken", "gigatoken is not installed"
    except Exception as error:  # of any class, from a young library: tiktoken is used instead
        return "tiktoken", f"gigatoken fails ({error})"
    expected = tokenizer.encode_batch([*sample, *HARD])
    if not all(np.array_equal(ours, theirs) for ours, theirs in zip(expected, candidate_ids, strict=True)):
        return "tiktoken", "gigatoken gives other ids on a sample"
    return "gigatoken", f"the same ids as tiktoken on {len(expected)} texts"


def agrees_with_tokenizers(tokenizer: Tokenizer, sample: Sequence[str]) -> bool:
    """Whether Hugging Face's `tokenizers` gives our ids for the sample, from the file that we save."""
    import tokenizers

    if isinstance(tokenizer, LibraryTokenizer):
        return True  # it computes them itself
    peer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.as_json()))
    peer.encode_special_tokens = True  # its name for "text that looks special is text"
    encodings = peer.encode_batch(list(sample))
    return all(tokenizer.encode(text) == theirs.ids for text, theirs in zip(sample, encodings, strict=True))


def encode_shard(folder: Path, key: str, library: str, shard: Shard, split: str | None, stem: Path) -> Refused:
    """Write the token files of one shard. Returns the rows passed over."""
    refused = Refused()
    tokenizer, encode = _encoder(folder, key, library)
    batches = (texts.to_pylist() for texts, _ in documents.read(shard, split, refused))
    sequences = (tokenizer.document(ids) for texts in batches for ids in encode(texts))
    token_files.write(stem, sequences, token_files.dtype_for(tokenizer.size))
    for path in _files(stem):
        seal(path)
    return refused


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".bin"), stem.with_name(stem.name + ".idx")


@cache
def _encoder(folder: Path, key: str, library: str) -> tuple[Tokenizer, Encode]:
    tokenizer = of_model(folder)
    return tokenizer, _gigatoken(tokenizer) if library == "gigatoken" else tokenizer.encode_batch


def _gigatoken(tokenizer: Tokenizer) -> Encode:
    import gigatoken

    # Without special tokens it knows none, so none can come out of text.
    return gigatoken.Tokenizer.from_json(json.dumps({**tokenizer.as_json(), "added_tokens": []})).encode_batch
