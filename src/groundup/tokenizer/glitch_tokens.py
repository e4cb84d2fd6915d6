"""Tokens that a model may never have learned: glitch tokens, by the vocabulary alone and by a model's embeddings.

Land and Bartolo 2024, "Fishing for Magikarp" (arXiv 2405.05417). A token that its own text does not encode to cannot
come out of any text, so no model has been trained on it. For others the embeddings show it: the input row of a token that
was never read stays where it was initialised (or decays), so its norm is small; the output row of a token that was
never a target is only ever pushed away, so it points in the direction of the rows of tokens that cannot occur.
"""

from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.seals import verify
from groundup.tokenizer.hf_tokenizer import HFTokenizer

# Bytes that no UTF-8 text holds: tokens of them, in a byte-level vocabulary, have certainly not been trained on.
IMPOSSIBLE = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])
BEFORE = "«"  # a mark that few tokens continue, so that the text after it is encoded as within a text
INPUT_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
OUTPUT_NAMES = ("lm_head.weight", "embed_out.weight")


def unreachable(tokenizer: HFTokenizer) -> tuple[list[int], int]:
    """Ordinary tokens that their own text never encodes to, and how many cannot be tested (parts of characters or words)."""
    word_ends = [token for token in tokenizer.ordinary if tokenizer.names[token].endswith(tokenizer.word_suffix)]
    testable = [(token, text) for token in word_ends if (text := tokenizer.text_of(token)) is not None]
    encodings = [tokenizer.encode_batch([prefix + text for _, text in testable]) for prefix in ("", BEFORE, "a")]
    lost = [token for (token, _), *runs in zip(testable, *encodings, strict=True) if not any(token in ids for ids in runs)]
    return lost, len(tokenizer.ordinary) - len(testable)


def impossible(tokenizer: HFTokenizer) -> list[int]:
    """Tokens of a byte-level vocabulary that hold a byte which no text has."""
    return [token for token in tokenizer.ordinary if IMPOSSIBLE.intersection(tokenizer.bytes_of(tokenizer.names[token]) or b"")]


def read_embeddings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Input and output embeddings (vocabulary, width) of a Hugging Face folder, float32; the same where they are tied.

    Only safetensors are read. Raises UserError when there are none, or no embedding in them.
    """
    from safetensors import SafetensorError, safe_open

    embeddings: dict[str, np.ndarray] = {}
    paths = sorted(Path(folder).glob("*.safetensors"))
    verify(Path(folder), "*.safetensors")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118, it is no dictionary
                    for side, names in (("input", INPUT_NAMES), ("output", OUTPUT_NAMES)):
                        if key.endswith(names):
                            embeddings[side] = file.get_tensor(key).float().numpy()
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if "input" not in embeddings:
        raise UserError(f"{folder}: {'no embedding in its' if paths else 'no'} *.safetensors; give a Hugging Face model folder")
    return embeddings["input"], embeddings.get("output", embeddings["input"])


def indicators(inputs: np.ndarray, outputs: np.ndarray, unused: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Norm of each input row; cosine of each centred output row with the mean of those of the tokens `unused`, or None."""
    norms = np.linalg.norm(inputs, axis=1)
    if not unused:
        return norms, None
    centred = outputs - outputs.mean(0)
    direction = centred[unused].mean(0)
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(direction)
    return norms, centred @ direction / np.maximum(lengths, 1e-12)


def from_embeddings(
    tokenizer: HFTokenizer, model: Path, known: list[int], used: np.ndarray, shown: int
) -> dict[str, Any]:
    """The tokens whose embeddings look least trained, without those that are parts of characters.

    known: tokens that no text encodes to; used (size,): how often each token occurs in an encoded text.

    `separation`: the chance that a token which the text never uses looks less trained than one that it does.
    Raises UserError when the model has fewer rows than the tokenizer has tokens.
    """
    inputs, outputs = read_embeddings(model)
    if min(len(inputs), len(outputs)) < tokenizer.size:
        raise UserError(f"{model}: {len(inputs)} embeddings, but the tokenizer has {tokenizer.size} tokens: not of one model")
    beyond = list(range(tokenizer.size, len(outputs)))
    norms, cosines = indicators(inputs, outputs, [*known, *beyond])
    ids = np.array(sorted(tokenizer.names))
    doubt = -norms[ids] if cosines is None else cosines[ids]
    judged = np.isin(ids, tokenizer.ordinary) & ~np.isin(ids, known)
    order = np.lexsort((ids, -doubt))
    ranks = norms[ids].argsort(kind="stable").argsort(kind="stable") / max(len(ids) - 1, 1)
    apart = {*known, *(token for token in tokenizer.ordinary if tokenizer.byte_level and tokenizer.text_of(token) is None)}
    candidates = [index for index in order if ids[index] not in apart][:shown]
    return {
        "model": str(model),
        "known": len(known) + len(beyond),
        "by": "norm" if cosines is None else "direction",
        "separation": separation(doubt[judged], used[ids[judged]] == 0),
        "separation_by_norm": separation(-norms[ids[judged]], used[ids[judged]] == 0),
        "candidates": [
            {
                "id": int(ids[index]),
                "token": tokenizer.written(tokenizer.names[int(ids[index])]),
                "special": int(ids[index]) in tokenizer.added,
                "cosine": None if cosines is None else float(cosines[ids[index]]),
                "norm": float(norms[ids[index]]),
                "norm_rank": float(ranks[index]),
                "used": int(used[ids[index]]),
            }
            for index in candidates
        ],
    }


def separation(doubt: np.ndarray, unused: np.ndarray) -> float | None:
    """Area under the curve: the chance that an unused token has more doubt than a used one, ties half; None if one-sided."""
    if not unused.any() or unused.all():
        return None
    used = np.sort(doubt[~unused])
    below, up_to = np.searchsorted(used, doubt[unused], "left"), np.searchsorted(used, doubt[unused], "right")
    return float(((below + up_to) / 2).mean() / len(used))
