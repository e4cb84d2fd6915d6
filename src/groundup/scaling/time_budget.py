"""A budget of minutes: which size and how many tokens make the least loss in the minutes that are left for them.

The law is that of the ladder that ships with the package (`shipped_law.json`: of which text, when, how). Its exponents say
which of two models is better; the loss itself depends on the text and its tokenizer, so a short pilot on the run's own text
says by which factor all losses differ from the ladder's.
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from groundup.scaling import laws

FILE = Path(__file__).with_name("shipped_law.json")
PILOTS = {1_048_576: 4096, 262_144: 2048}  # tokens and batch of a run at depth 1; the longer one says more
AIM = 0.95  # of the minutes: a run is to end within them
COMPILE_SECONDS, COMPILED_GAIN = 40.0, 1.4  # what `core.device` knows of torch.compile


@dataclass(frozen=True)
class ShippedLaw:
    about: dict[str, Any]  # made, text, how, runs, held_out, larger, transfer, pilots
    fit: laws.Fit

    @property
    def named(self) -> str:
        return f"{FILE.name} of {self.about['made']} ({self.about['runs']} runs on {self.about['text']})"


@cache
def shipped() -> ShippedLaw:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    names = laws.FIELDS
    law = laws.Law(*(content["law"][name] for name in names))
    draws = laws.Law(*(np.array(content["draws"][name]) for name in names))
    about = {name: content[name] for name in ("made", "text", "how", "runs", "held_out", "larger", "transfer", "pilots")}
    return ShippedLaw(about, laws.Fit(law, draws, np.array(content["residuals"])))


@dataclass(frozen=True)
class Candidate:
    """A size that was tried: how fast it trains, and what the rest of the run takes with it."""

    depth: int
    parameters: int  # that a token is multiplied with
    flop: float  # a token
    tokens_per_second: float
    after: float  # seconds of the steps after the base model


@dataclass(frozen=True)
class CandidateResult:
    """The result of a candidate; tokens 0 where the time does not reach."""

    depth: int
    parameters: int
    tokens_per_second: float
    tokens: int
    seconds: float  # of training
    after: float
    loss: float  # by the law, nats per token

    def row(self) -> dict[str, Any]:
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


def weighed(
    one: Candidate, seconds: float, available: float, besides: int, compiled_from: float, factor: float = 1.0
) -> CandidateResult:
    """The result of a candidate in `seconds` for its training and all after it.

    available: tokens that the mixture has; besides: tokens' worth of work of measuring while it trains; compiled_from: FLOP from
    which a training is compiled; factor: of the law's losses.
    """
    left = seconds - one.after
    tokens = left * one.tokens_per_second - besides
    compiled = (left - COMPILE_SECONDS) * one.tokens_per_second * COMPILED_GAIN - besides
    if compiled * one.flop >= compiled_from:
        tokens = compiled
    tokens = max(0, int(min(tokens, available)))
    rate = one.tokens_per_second * (COMPILED_GAIN if tokens * one.flop >= compiled_from else 1)
    taken = (tokens + besides) / rate + (COMPILE_SECONDS if tokens * one.flop >= compiled_from else 0)
    loss = factor * float(shipped().fit.law.loss(one.parameters, tokens)) if tokens else math.inf
    return CandidateResult(one.depth, one.parameters, one.tokens_per_second, tokens, taken, one.after, loss)


def expected(parameters: int, tokens: int, factor: float) -> dict[str, float]:
    """The loss with its interval: of the law, of a run's noise, and of carrying it to another text (`transfer`, a share)."""
    law = shipped()
    found = law.fit.predict(parameters, tokens)
    doubt = 0.0 if factor == 1.0 else law.about["transfer"]
    return {
        "value": factor * found["value"], "low": factor * found["low"] * (1 - doubt), "high": factor * found["high"] * (1 + doubt)
    }  # fmt: skip


def pilots_factor(loss: float, parameters: int, tokens: int) -> float:
    """What the losses of a text are of the ladder's, from one run on it.

    A pilot is shorter than the ladder's runs: by how much the law is off at its place, pilots on the ladder's own text say.
    """
    law = shipped()
    alike = min(law.about["pilots"], key=lambda length: abs(int(length) - tokens))
    return loss / (law.about["pilots"][alike] * float(law.fit.law.loss(parameters, tokens)))
