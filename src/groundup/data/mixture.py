"""The mixture: how many tokens to draw from each domain for a budget.

Weights are shares of the training tokens, as in the mixtures of LLaMA and DoReMi. A domain is read at most
`max_repeats` times, because more gains little (Muennighoff et al. 2023); what it cannot give comes from the others.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from groundup.core.errors import UserError
from groundup.core.text import shown


@dataclass(frozen=True)
class MixturePlan:
    tokens: dict[str, int]  # to draw, by domain
    repeats: dict[str, float]  # drawn / available
    shares: dict[str, float]  # realised shares of the tokens drawn
    capped: list[str]  # domains that could not give their share
    missing: int  # tokens of the budget that no domain can give within the cap


def plan(
    tokens_by_domain: dict[str, int], weights: dict[str, float], budget: int, max_repeats: float,
    drawn_before: Mapping[str, int] | None = None,
) -> MixturePlan:  # fmt: skip
    """Split `budget` tokens over the domains, in proportion to `weights`; without weights, to the available tokens.

    With weights, domains without one are not drawn from. drawn_before: tokens that another part of the training draws from a
    domain, which count among its repeats.
    Raises UserError for a weight of a domain that has no tokens.
    """
    available = {domain: tokens for domain, tokens in sorted(tokens_by_domain.items()) if tokens > 0}
    for domain in sorted(set(weights) - set(available)):
        near = difflib.get_close_matches(domain, available, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"domains with tokens: {', '.join(available) or 'none'}"
        raise UserError(f"weights: no tokens of domain {domain!r}; {hint}")
    wanted = {domain: float(weights[domain]) for domain in available if domain in weights} or dict(available)
    before = drawn_before or {}
    limits = {domain: max(0, int(available[domain] * max_repeats) - before.get(domain, 0)) for domain in wanted}
    drawn: dict[str, int] = {}
    remaining = budget
    while open_domains := [domain for domain in wanted if domain not in drawn]:
        total = sum(wanted[domain] for domain in open_domains)
        allotted = {domain: remaining * wanted[domain] / total for domain in open_domains}
        capped = [domain for domain in open_domains if allotted[domain] > limits[domain]]
        for domain in capped:
            drawn[domain] = limits[domain]
            remaining -= limits[domain]
        if not capped:
            drawn |= _rounded(allotted, remaining, limits)
            break
    total = max(1, sum(drawn.values()))
    return MixturePlan(
        tokens={domain: drawn.get(domain, 0) for domain in available},
        repeats={domain: drawn.get(domain, 0) / available[domain] for domain in available},
        shares={domain: drawn.get(domain, 0) / total for domain in available},
        capped=[domain for domain in wanted if drawn[domain] == limits[domain]],
        missing=budget - sum(drawn.values()),
    )


def _rounded(allotted: dict[str, float], total: int, limits: dict[str, int]) -> dict[str, int]:
    """Round down, then hand the remaining tokens to the largest fractions, so that the sum is `total`."""
    rounded = {domain: int(tokens) for domain, tokens in allotted.items()}
    for domain in sorted(allotted, key=lambda name: (rounded[name] - allotted[name], name)):
        if sum(rounded.values()) < total and rounded[domain] < limits[domain]:
            rounded[domain] += 1
    return rounded


def report(plan: MixturePlan) -> dict[str, Any]:
    """The realised mix, for people and JSON."""
    return {
        "domains": {
            domain: {"drawn": drawn, "share": plan.shares[domain], "repeats": plan.repeats[domain]}
            for domain, drawn in plan.tokens.items()
        },
        "capped": plan.capped,
        "missing": plan.missing,
    }


def named_numbers(pairs: Iterable[str], what: str, expected: str, below: float = math.inf) -> dict[str, float]:
    """["code=0.3", "prose=0.7"] -> {"code": 0.3, "prose": 0.7}, each above 0.

    Raises UserError for anything else: `what` it is, and what is `expected`.
    """
    numbers = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")  # a domain is called after a file, which may hold one: lang=en
        if name in numbers:
            raise UserError(f"{what} {shown(pair)}: {shown(name)} is given twice")
        try:
            numbers[name] = float(number)
        except ValueError:
            numbers[name] = 0.0
        if not name or not 0 < numbers[name] < below:
            raise UserError(f"{what} {shown(pair)}: expected {expected}")
    return numbers
