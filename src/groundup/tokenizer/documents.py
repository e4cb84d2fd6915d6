"""Documents from files, in shards: Parquet, JSON and CSV with a column `text`, or plain texts (`data/readers.py`).

The shards depend on the file alone, never on the number of workers. `domain` is the file's column where it has one, and
otherwise the file's name. Where the file has a `split` column, one split can be selected; `split` and `language` are
empty where the file has no such column.
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
    folder: str = ""  # the name of the given folder, if the file was found in one

    @property
    def name(self) -> str:
        """Equal for the same part of the same content under the same file name and domain, in any folder."""
        return f"{self.stem[:LONGEST_STEM]}-{self.key[:16]}-{self.kind.form}-{self.start}-{self.stop}"

    @property
    def key(self) -> str:
        """Equal for the same content with the same domain."""
        return blake2b(f"{self.folder}\0{self.content}".encode(), digest_size=16).hexdigest() if self.folder else self.content

    @property
    def domain(self) -> str:
        """Of documents that state none: a folder of notes, or of parts of a data set, is not as many domains as it has files."""
        return self.folder or self.stem

    @property
    def stem(self) -> str:
        """The file's name without its endings: `a` of `a.jsonl.gz`."""
        name = PurePath(self.path.name)
        return well_formed((PurePath(name.stem) if name.suffix.lower() in file_kinds.PACKED else name).stem)

    @property
    def part(self) -> tuple[int, int] | None:
        """The argument `part` of `batches`; None for all of a file."""
        return (self.start, self.stop) if _can_be_cut(self.kind) else None


def find(inputs: Collection[Path]) -> list[Shard]:
    """Shards of files, folders of files, corpus folders and run folders.

    Files of a folder that are no texts, or cannot be read, are logged and passed over.
    Raises UserError where there is no text, and for a file given by name that cannot be read.
    """
    shards = []
    for source in map(Path, inputs):
        files, folder = _files(source)
        refusals: list[UserError] = []
        for path in files:
            try:
                shards += _shards(path, folder)
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
    """Digest of the files' contents, in order, and of their domains."""
    named = "".join(f"{domain}\0{content}\n" for domain, content in dict.fromkeys((s.domain, s.content) for s in shards))
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

    Where the files have no split, a share of `held_out` of all texts is held out, by their digests: copies are on one side.
    A split of another name than "train", such as "test", is held out too.
    """
    for shard in shards:
        for batch in read_annotated(shard, None, refused, ("best",)):
            for row in batch.to_pylist():
                text = row["text"]
                key = blake2b(text.encode(), digest_size=8).digest()
                stated, drawn = row["split"], int.from_bytes(key) < held_out * 2**64
                if (split == "held_out") == (drawn if not stated else stated != "train"):
                    yield {"id": key.hex(), "text": text, "domain": row["domain"], "best": row["best"].lower() == "true"}


def read_annotated(
    shard: Shard, split: str | None = None, refused: Refused | None = None, more: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """`read` with all columns of a document: strings `text`, `domain`, `language`, `split`, and `more`."""
    refused = Refused() if refused is None else refused
    names = (*ANNOTATIONS, *more)
    for batch in batches(shard.path, "text", names, refused, shard.kind, shard.part):
        if split:
            # An empty cell of a CSV is no split, as null is.
            batch = batch.filter(pc.is_in(batch["split"].fill_null(""), pa.array(["", split], batch["split"].type)))
        if not len(batch):
            continue
        domains = batch["domain"].fill_null("")
        domains = pc.if_else(pc.equal(domains, ""), shard.domain, domains)
        notes = [domains, *(batch[name].fill_null("") for name in names[1:])]
        yield pa.record_batch([batch["text"], *notes], names=["text", *names])


def _shards(path: Path, folder: str) -> list[Shard]:
    kind = kind_of(path)
    content = digest(path)
    if kind.form == "parquet":
        return [Shard(path, content, kind, start, stop, folder) for start, stop in text_ranges(path, "text", SHARD_BYTES)]
    next(batches(path, "text", (), Refused(), kind), None)  # refuses a file without that column before any work
    size = path.stat().st_size
    starts = range(0, size, SHARD_BYTES if _can_be_cut(kind) else max(size, 1))
    return [Shard(path, content, kind, start, min(start + starts.step, size), folder) for start in starts]


def _can_be_cut(kind: Kind) -> bool:
    return kind.form == "parquet" or (kind.form == "lines" and not kind.sequential)


def _files(path: Path) -> tuple[list[Path], str]:
    """The files of an input, and the name of the folder that they were found in; none for a corpus, whose rows state domains."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        return [checked(path)], ""
    for corpus in (path / "corpus" / "documents.parquet", path / "documents.parquet"):
        if corpus.is_file():
            return [checked(corpus)], ""
    if next(path.glob("*/stage.json"), None):
        raise UserError(f"{path}: a run without a finished corpus: run it that far, or give files of text")
    names, skipped = file_kinds.files_of(path, ENDINGS)
    for line in file_kinds.skipped_lines(skipped):
        logger.info(f"{line}")
    if not names:
        raise UserError(f"{path}: no corpus and no files of text in it ({', '.join(ENDINGS[:6])}, .txt, .md ..., also .gz, .zst)")
    return [path / name for name in names], well_formed(path.resolve().name)
