"""A random sample of documents that depends on their texts alone: not on their order, their files, or a random generator.

Each document is ranked by the digest of its text, and the sample is those of the lowest ranks. So documents of the
same text coincide and count once, and what is held out of one sample is never trained on in another.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from groundup.core.errors import UserError
from groundup.core.progress import Progress
from groundup.tokenizer import documents
from groundup.tokenizer.documents import Shard

LONGEST_PART = 100_000  # characters; longer documents are cut into parts, so that a book in one file can be sampled too


@dataclass(frozen=True)
class Document:
    text: str
    domain: str
    language: str  # empty where it is not known
    split: str  # likewise

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text.encode())


def sample(shards: Sequence[Shard], max_bytes: int, seed: int = 0) -> list[Document]:
    """Documents of `max_bytes` of text in total, or all of them, in an order that depends on the seed and the texts.

    No more than the sample is in memory at a time. Raises UserError when there is no text.
    """
    kept: dict[bytes, Document] = {}
    highest: list[tuple[int, bytes]] = []  # the highest rank first
    total, limit = 0, b"\xff" * 17  # ranks from `limit` on are dropped
    with Progress("reading", len(shards), "shards") as progress:
        for shard in shards:
            for document in _parts(shard):
                rank = blake2b(document.text.encode(), digest_size=16, salt=seed.to_bytes(8, "little")).digest()
                if not document.text or rank >= limit or rank in kept:
                    continue
                kept[rank] = document
                heapq.heappush(highest, (-int.from_bytes(rank), rank))
                total += document.size
                while total > max_bytes and len(kept) > 1:
                    limit = heapq.heappop(highest)[1]
                    total -= kept.pop(limit).size
            progress.advance()
    if not kept:
        raise UserError(f"no text in {', '.join(sorted({str(shard.path) for shard in shards}))}")
    return [kept[rank] for rank in sorted(kept)]



def _parts(shard: Shard) -> Iterator[Document]:
    for batch in documents.read_annotated(shard):
        for row in batch.to_pylist():
            text = row.pop("text")
            while len(text) > LONGEST_PART:
                end = text.rfind("\n", 0, LONGEST_PART) + 1 or LONGEST_PART
                yield Document(text[:end], **row)
                text = text[end:]
            yield Document(text, **row)
