"""Documents, a tokenizer and token files as the stages before base leave them."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.data import token_files
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

SENTENCES = ["the function returns the path", "it takes a file and a name", "an error is raised where no file is found"]
DOCUMENTS = [
    {"text": ". ".join(SENTENCES[(n + k) % 3] for k in range(3 + n)), "domain": "code" if n % 2 else "prose"}
    for n in range(12)
]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_merges(bpe.train(bpe.count_pretokens(SENTENCES * 9), 300))


def write_tokens(folder: Path, documents: list[dict], encoder: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for split, some in (("train", documents[2:]), ("held_out", documents[:2])):
        sequences = [np.array([encoder.end_of_text, *encoder.encode(row["text"])]) for row in some]
        token_files.write(folder / split, sequences, token_files.dtype_for(encoder.size))
        for place, (row, sequence) in enumerate(zip(some, sequences, strict=True)):
            table.append({"split": split, "place": place, "domain": row["domain"], "best": place % 2 == 0,
                          "tokens": len(sequence)})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table), folder / "documents.parquet")
