"""How a folder's generation_config.json has its model sampled; chat, the API and the file that we write go by the same values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import read_object

FILE = "generation_config.json"
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.9, 0  # of a folder that states none
HOTTEST, MOST = 1e3, 2**31 - 1
# What would change which token is picked, with the value that changes nothing.
NOT_DONE: dict[str, Any] = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "min_p": 0,
    "top_h": None, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0, "guidance_scale": 1,
    "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "watermarking_config": None, "min_length": 0, "min_new_tokens": 0, "stop_strings": None, "max_time": None,
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """Sampling and ends as a folder states them. `temperature` 0 is greedy, `top_k` 0 is all tokens."""

    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    top_k: int = TOP_K
    ends: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()  # names of what is stated and not done here
    stated: Mapping[str, Any] | None = field(default=None, repr=False)  # the file as it is; None: there is none

    def sampling(self) -> dict[str, Any]:
        """The entries of the file; without top_k transformers would sample from 50 tokens, where vLLM and we do from all."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


def read(folder: Path, vocabulary: int, ends: Any) -> Generation:
    """Of a model folder; `ends`, those of its config.json, hold where the file has none.

    Where it states any sampling, what it does not state is neutral, as in vLLM; where it states none, our values hold.
    Raises UserError, naming the entry, for a value of another type or out of range.
    """
    path = folder / FILE
    if not path.exists():
        return Generation(ends=_ids(ends, "eos_token_id", folder / "config.json", vocabulary))
    stated = read_object(path)
    given = {name: value for name, value in stated.items() if value is not None}
    for name in ("bos_token_id", "pad_token_id"):
        if given.get(name) != -1:  # the first Llamas have it for "none"
            _ids(given.get(name), name, path, vocabulary)
    ends = _ids(given.get("eos_token_id", ends), "eos_token_id", path, vocabulary)
    temperature = _number(given, "temperature", path, "a number from 0 to 1,000", lambda value: 0 <= value <= HOTTEST)
    top_p = _number(given, "top_p", path, "a number above 0, at most 1", lambda value: 0 < value <= 1)
    top_k = given.get("top_k")
    if top_k is not None and (type(top_k) is not int or not -1 <= top_k <= MOST):
        raise UserError(f"{path}: top_k is {_shown(top_k)}; it must be a whole number, 0 or -1 for all tokens")
    sampled = given.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise UserError(f"{path}: do_sample is {_shown(sampled)}; it must be true or false")
    unknown = tuple(name for name, neutral in NOT_DONE.items() if given.get(name, neutral) != neutral)
    if (temperature, top_p, top_k, sampled) == (None, None, None, None):
        return Generation(ends=ends, unknown=unknown, stated=stated)
    temperature = 0.0 if sampled is False else 1.0 if temperature is None else temperature
    return Generation(temperature, 1.0 if top_p is None else top_p, max(top_k or 0, 0), ends, unknown, stated)


def _number(given: Mapping[str, Any], name: str, path: Path, what: str, fits: Any) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or value != value or not fits(value) or not math.isfinite(value):
        raise UserError(f"{path}: {name} is {_shown(value)}; it must be {what}")
    return float(value)


def _ids(value: Any, name: str, path: Path, vocabulary: int) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    if (isinstance(value, list) and name != "eos_token_id") or any(
        type(token) is not int or not 0 <= token < vocabulary for token in found
    ):
        raise UserError(f"{path}: {name} is {_shown(value)}; ids are 0 to {vocabulary - 1}")
    return tuple(found)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
