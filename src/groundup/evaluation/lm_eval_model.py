"""Any model of `groundup evaluate` as an `LM` of lm-evaluation-harness, for its task files.

    lm_eval.simple_evaluate(model=GroundupLM("runs/laptop/base"), tasks=["piqa"])

lm-eval asks for the same three things, so this only passes them on. Needs the extra `lm-eval`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from groundup.core.errors import UserError
from groundup.data.messages import BadRow
from groundup.evaluation.answer_extraction import cut
from groundup.evaluation.open_model import open_model

MAX_TOKENS = 256  # of an answer, where the task does not say; lm-eval's own


class GroundupLM(LM):
    """`model`: what `groundup evaluate` takes. The results are those of `groundup evaluate` on the same prompts.

    Of a context that begins or ends with spaces, and of a token that spans the border of context and answer, see
    `models.TokenModel.continuations`. Raises UserError for a model that cannot be opened, for requests that it cannot answer,
    and for sampling: answers are greedy.
    """

    def __init__(self, model: str, batch_size: int = 64) -> None:
        super().__init__()
        self.model, self.batch_size = open_model(model), batch_size

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = self.model.continuations([request.args for request in requests], self.batch_size)
        return [(one.nats, one.greedy) for one in map(_whole, found)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        found = self.model.texts([request.args[0] for request in requests], "disjoint", self.batch_size)
        return [*map(_whole, found)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        found = [""] * len(requests)
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(_settings(request.args[1]), []).append(number)
        for (until, max_tokens), numbers in alike.items():
            prompts = [requests[number].args[0] for number in numbers]
            texts = self.model.written(prompts, until, max_tokens, self.batch_size)
            for number, one in zip(numbers, texts, strict=True):
                found[number] = cut(_whole(one)[0], until)
        return found


def _whole(found: Any) -> Any:
    if isinstance(found, BadRow):
        raise UserError(f"lm-eval asks for what the model cannot score: {found.reason}")
    return found


def _settings(asked: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """What ends an answer, and how many tokens it has at most."""
    if asked.get("do_sample") and float(asked.get("temperature", 1.0)) > 0:
        raise UserError("lm-eval asks for sampled answers; groundup's are greedy: set do_sample to false in the task's file")
    until = asked.get("until") or []
    until = (until,) if isinstance(until, str) else tuple(until)
    return until, int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or asked.get("max_tokens") or MAX_TOKENS)
