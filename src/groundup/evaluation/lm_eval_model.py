"""Any model of `groundup evaluate` as an `LM` of lm-evaluation-harness, for its task files.

    lm_eval.simple_evaluate(model=GroundupLM("runs/laptop/base"), tasks=["piqa"])

lm-eval asks for the same three things, so this class only passes them on. Needs the extra `lm-eval`.
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

    For a context that begins or ends with spaces, and a token that spans the border of context and answer, see
    `evaluated_models.TokenModel.continuations`. Raises UserError for a model that cannot be opened, for requests that it cannot
    answer, and for sampling: answers are greedy.
    """

    def __init__(self, model: str, batch_size: int = 64) -> None:
        super().__init__()
        self.model, self.batch_size = open_model(model), batch_size

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        scores = self.model.continuations([request.args for request in requests], self.batch_size)
        return [(score.nats, score.greedy) for score in map(_require_scored, scores)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        nats = self.model.texts([request.args[0] for request in requests], "disjoint", self.batch_size)
        return [*map(_require_scored, nats)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = [""] * len(requests)
        by_settings: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(_settings(request.args[1]), []).append(number)
        for (until, max_tokens), numbers in by_settings.items():
            prompts = [requests[number].args[0] for number in numbers]
            texts = self.model.written(prompts, until, max_tokens, self.batch_size)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = cut(_require_scored(text)[0], until)
        return answers


def _require_scored(result: Any) -> Any:
    if isinstance(result, BadRow):
        raise UserError(f"lm-eval asks for what the model cannot score: {result.reason}")
    return result


def _settings(generation: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """What ends an answer, and how many tokens it has at most."""
    if generation.get("do_sample") and float(generation.get("temperature", 1.0)) > 0:
        raise UserError("lm-eval asks for sampled answers; groundup's are greedy: set do_sample to false in the task's file")
    until = generation.get("until") or []
    until = (until,) if isinstance(until, str) else tuple(until)
    longest = generation.get("max_gen_toks") or generation.get("max_new_tokens") or generation.get("max_tokens") or MAX_TOKENS
    return until, int(longest)
