"""A budget of minutes: which size and how many tokens make the least loss in the minutes that remain for training.

The law is that of the ladder that ships with the package (`shipped_law.json`: of which text, when, how). Its exponents say
which of two models is better. The loss itself depends on the text and its tokenizer, so a short pilot on the run's own text
gives the factor by which all losses differ from the ladder's.
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
AIM = 0.95  # share of the minutes that is planned for: a run is to end within them
COMPILE_SECONDS, COMPILED_SPEEDUP = 40.0, 1.4  # of torch.compile, as `core.device` says
UNCOMPILED = 0.99  # at most, of the FLOP from which a training is compiled: its last step is rounded up


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
    """A size that was measured: how fast it trains, and how long the later steps of the run take with it."""

    depth: int
    parameters: int  # that a token is multiplied with
    flop: float  # a token
    tokens_per_second: float
    after: float  # seconds of the steps after the base model


@dataclass(frozen=True)
class CandidateResult:
    """What a candidate reaches in the minutes; tokens 0 where they are too few."""

    depth: int
    parameters: int
    tokens_per_second: float
    tokens: int
    seconds: float  # of training
    after: float
    loss: float  # by the law, nats per token

    def row(self) -> dict[str, Any]:
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


def candidate_result(
    candidate: Candidate, seconds: float, available: float, measuring_tokens: int, compiled_from: float, factor: float = 1.0
) -> CandidateResult:
    """The result of a candidate in `seconds` for its training and the steps after it.

    available: tokens that the mixture has; measuring_tokens: the work of measuring while it trains, as tokens that take as long;
    compiled_from: FLOP from which a training is compiled; factor: by which the law's losses are multiplied.
    """
    training_budget, speed = seconds - candidate.after, candidate.tokens_per_second
    tokens = min(training_budget * speed - measuring_tokens, available)
    compiled_tokens = min((training_budget - COMPILE_SECONDS) * speed * COMPILED_SPEEDUP - measuring_tokens, available)
    compiled = compiled_tokens * candidate.flop >= compiled_from
    # A training with too little time to compile has to stay below the FLOP from which it would.
    tokens = max(0, int(compiled_tokens if compiled else min(tokens, UNCOMPILED * compiled_from / candidate.flop)))
    training_seconds = (tokens + measuring_tokens) / (speed * (COMPILED_SPEEDUP if compiled else 1))
    training_seconds += COMPILE_SECONDS if compiled else 0
    loss = factor * float(shipped().fit.law.loss(candidate.parameters, tokens)) if tokens else math.inf
    return CandidateResult(candidate.depth, candidate.parameters, speed, tokens, training_seconds, candidate.after, loss)


def predicted_loss(parameters: int, tokens: int, factor: float) -> dict[str, float]:
    """The loss with its interval: of the law, of a run's noise, and of the transfer to another text (`transfer`, a share)."""
    law = shipped()
    prediction = law.fit.predict(parameters, tokens)
    transfer_error = 0.0 if factor == 1.0 else law.about["transfer"]
    return {
        "value": factor * prediction["value"], "low": factor * prediction["low"] * (1 - transfer_error),
        "high": factor * prediction["high"] * (1 + transfer_error),
    }  # fmt: skip


def pilots_factor(loss: float, parameters: int, tokens: int) -> float:
    """The factor of a text's losses to the ladder's, from one run on it.

    A pilot is shorter than the ladder's runs. Pilots on the ladder's own text say how far the law is off at that length.
    """
    law = shipped()
    alike = min(law.about["pilots"], key=lambda length: abs(int(length) - tokens))
    return loss / (law.about["pilots"][alike] * float(law.fit.law.loss(parameters, tokens)))
