"""Documents from files, in shards: Parquet, JSON and CSV with a column `text`, or plain texts (`data/readers.py`).

What a shard is depends on the file alone, never on the number of workers. `domain`, where the file has it, is kept;
otherwise the file's name stands for it. Where the file has a `split` column, one split can be asked for; it and
`language` are empty where the file does not say.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import groundup.core.arrow  # noqa: F401 (for what it keeps away)
from groundup.core.errors import UserError
from groundup.core.files import digest
from groundup.core.seals import checked
from groundup.core.text import well_formed
from groundup.data import file_kinds
from groundup.data.file_kinds import Kind, kind_of
from groundup.data.readers import Refused, batches, text_ranges

logger = logging.getLogger(__name__)

SHARD_BYTES = 16 << 20  # of text
ANNOTATIONS = ("domain", "language", "split")
ENDINGS = (*file_kinds.ROWS, *file_kinds.TEXTS)
LONGEST_STEM = 40  # characters of a file's name that its shards are named after: file systems take 255 bytes in all


@dataclass(frozen=True)
class Shard:
    """Part of a file: rows of Parquet, bytes of JSON lines (a line belongs where it begins), or all of another file."""

    path: Path
    content: str  # digest of the whole file
    kind: Kind
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The same for the same part of the same content under the same name, in whatever folder."""
        return f"{self.stem[:LONGEST_STEM]}-{self.content[:16]}-{self.kind.form}-{self.start}-{self.stop}"

    @property
    def stem(self) -> str:
        """The file's name without its endings: `a` of `a.jsonl.gz`."""
        name = PurePath(self.path.name)
        return well_formed((PurePath(name.stem) if name.suffix.lower() in file_kinds.PACKED else name).stem)

    @property
    def part(self) -> tuple[int, int] | None:
        """What `batches` calls so; None for all of a file."""
        return (self.start, self.stop) if _can_be_cut(self.kind) else None


def find(inputs: Collection[Path]) -> list[Shard]:
    """Shards of files, folders of files, corpus folders and run folders.

    Files of a folder that are no texts, or cannot be read, are named and passed over.
    Raises UserError where there is nothing, and for a file given by name that cannot be read.
    """
    shards = []
    for given in map(Path, inputs):
        files = _files(given)
        refusals: list[UserError] = []
        for path in files:
            try:
                shards += _shards(path)
            except UserError as refusal:
                refusals.append(refusal)
                if len(refusals) == len(files):
                    raise refusals[0] from None
                if len(refusals) <= file_kinds.MAX_NAMED:
                    logger.warning(f"skipped {refusal}")
        if (more := len(refusals) - file_kinds.MAX_NAMED) > 0:
            logger.warning(f"skipped {more} more files that cannot be read")
    if not shards:
        raise UserError(f"no text in {', '.join(map(str, inputs))}"[:300])
    return shards


def digest_of_shards(shards: Iterable[Shard]) -> str:
    """Of the contents of the files, in order, and of the names that stand for domains."""
    named = "".join(f"{stem}\0{content}\n" for stem, content in dict.fromkeys((one.stem, one.content) for one in shards))
    return blake2b(named.encode(), digest_size=16).hexdigest()


def read(shard: Shard, split: str | None = None, refused: Refused | None = None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Batches of a shard: texts and domains (Arrow arrays of strings, no nulls among the texts).

    Bytes that are not UTF-8 become U+FFFD. Rows without text are counted in `refused`. Raises UserError as `batches` does.
    """
    for batch in read_annotated(shard, split, refused):
        yield batch["text"], batch["domain"]


def texts(shards: Iterable[Shard], split: str | None = None, refused: Refused | None = None) -> Iterator[str]:
    """The texts of some shards, one by one. Rows without text are counted in `refused`."""
    for shard in shards:
        for batch, _ in read(shard, split, refused):
            yield from batch.to_pylist()


def read_sides(shards: Sequence[Shard], split: str, held_out: float, refused: Refused) -> Iterator[dict[str, Any]]:
    """The documents of a side, "train" or "held_out", as rows with `id`, `text`, `domain` and `best`.

    Where the files do not say, a share of `held_out` of all texts is held out, by their digests: copies are on one side.
    What they call by another name than "train", as "test", is held out too.
    """
    for shard in shards:
        for batch in read_annotated(shard, None, refused, ("best",)):
            for row in batch.to_pylist():
                text = row["text"]
                number = blake2b(text.encode(), digest_size=8).digest()
                said, chosen = row["split"], int.from_bytes(number) < held_out * 2**64
                if (split == "held_out") == (chosen if not said else said != "train"):
                    yield {"id": number.hex(), "text": text, "domain": row["domain"], "best": row["best"].lower() == "true"}


def read_annotated(
    shard: Shard, split: str | None = None, refused: Refused | None = None, more: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The same with all that is known of a document: strings `text`, `domain`, `language`, `split`, and `more` columns."""
    refused = Refused() if refused is None else refused
    names = (*ANNOTATIONS, *more)
    for batch in batches(shard.path, "text", names, refused, shard.kind, shard.part):
        if split:
            batch = batch.filter(pc.equal(batch["split"], split).fill_null(True))
        if not len(batch):
            continue
        domains = batch["domain"].fill_null("")
        domains = pc.if_else(pc.equal(domains, ""), shard.stem, domains)
        notes = [domains, *(batch[name].fill_null("") for name in names[1:])]
        yield pa.record_batch([batch["text"], *notes], names=["text", *names])


def _shards(path: Path) -> list[Shard]:
    kind = kind_of(path)
    content = digest(path)
    if kind.form == "parquet":
        return [Shard(path, content, kind, start, stop) for start, stop in text_ranges(path, "text", SHARD_BYTES)]
    next(batches(path, "text", (), Refused(), kind), None)  # refuses what has no such column before any work
    size = path.stat().st_size
    starts = range(0, size, SHARD_BYTES if _can_be_cut(kind) else max(size, 1))
    return [Shard(path, content, kind, start, min(start + starts.step, size)) for start in starts]


def _can_be_cut(kind: Kind) -> bool:
    return kind.form == "parquet" or (kind.form == "lines" and not kind.sequential)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        return [checked(path)]
    for corpus in (path / "corpus" / "documents.parquet", path / "documents.parquet"):
        if corpus.is_file():
            return [checked(corpus)]
    if next(path.glob("*/stage.json"), None):
        raise UserError(f"{path}: a run without a corpus: let it come so far, or give files of text")
    found, skipped = file_kinds.files_of(path, ENDINGS)
    for line in file_kinds.skipped_lines(skipped):
        logger.info(f"{line}")
    if not found:
        raise UserError(f"{path}: no corpus and no files of text in it ({', '.join(ENDINGS[:6])}, .txt, .md ..., also .gz, .zst)")
    return [path / name for name in found]
