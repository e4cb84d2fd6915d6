import re
from pathlib import Path
from typing import Any

from groundup.core.text import visible
from groundup.corpus.tables import read_table
from groundup.report.run_results import RunResults
from groundup.tokenizer.load import of_model
from groundup.tokenizer.tokenizer import Tokenizer

TITLE = "Tokenizer: text becomes numbers"
STAGES = ("tokenizer",)

_SENTENCE = re.compile(r"(?<![^\s])[A-Z][a-z]*(?: [A-Za-z'-]+,?){7,18}\.(?!\S)")
_CODE_LINE = re.compile(r"^ +(?:return|if|for|def|raise) .{20,60}$", re.MULTILINE)


def gather(run: RunResults) -> dict[str, Any]:
    folders = run.folders
    return {
        "tokenizer": run.results["tokenizer"],
        "tokens": run.results.get("tokens"),
        "examples": tokenized(folders["corpus"], of_model(folders["tokenizer"])) if "corpus" in folders else [],
    }


def tokenized(corpus: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """A sentence and a line of code from held-out documents, cut into tokens; fewer when there is none."""
    rows = read_table(corpus / "documents.parquet", ["split", "kind", "text"]).to_pylist()
    held_out = [row for row in rows if row["split"] == "held_out"]
    prose = (" ".join(row["text"].split()) for row in held_out if row["kind"] != "code")
    code = (row["text"] for row in held_out if row["kind"] == "code")
    examples = []
    for what, texts, pattern in (("A sentence", prose, _SENTENCE), ("A line of code", code, _CODE_LINE)):
        match = next((match for text in texts if (match := pattern.search(text))), None)
        if match:
            pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(match[0])]
            texts = [visible(piece.decode("utf-8", "backslashreplace")) for piece in pieces]
            examples.append({"what": what, "pieces": texts, "bytes": len(match[0].encode())})
    return examples
