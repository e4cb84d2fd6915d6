"""How long to train, in which steps and with how much weight decay: what follows from a model's size.

| | rule | source |
| --- | --- | --- |
| tokens | 12 per parameter of blocks and head, if the mixture has as many | nanochat; Chinchilla has 20 |
| tokens per step | 4,096 (tokens / 3.2M)^0.383, down to a power of two | Power Lines (Bergsma et al. 2025), docs/log.md |
| weight decay | such that a weight remembers 1.084 (tokens / parameters)^-0.527 of the training | Power Lines |

Weight decay is for matrices only, and none under 100M tokens: at 4M it did harm (docs/log.md); between the two it is unmeasured.
"""

import math
from dataclasses import dataclass

from groundup.training.config import PretrainingConfig
from groundup.training.optimizer import MATRIX_LR

TOKENS_PER_PARAMETER = 12
BATCH, BATCH_AT, BATCH_POWER = 4096, 3.2e6, 0.383
MEMORY, MEMORY_POWER, DECAY_FROM = 1.084, -0.527, 1e8


@dataclass(frozen=True)
class Budget:
    tokens: int
    batch_tokens: int
    weight_decay: float  # of matrices, times their learning rate
    reasons: list[str]


def budget(settings: PretrainingConfig, parameters: int, available: float) -> Budget:
    """The values that the settings leave open (0 or None), from the number of parameters that a token is multiplied with.

    available: tokens that the mixture can give, repeats included.
    """
    wanted = settings.tokens or TOKENS_PER_PARAMETER * parameters
    tokens = max(1, int(min(wanted, available)))
    why = "as the recipe says" if settings.tokens else "nanochat's measure; Chinchilla's is 20"
    if tokens < wanted:
        why = f"as many as the mixture gives, instead of {wanted:,} ({why})"
    reasons = [f"{tokens:,} tokens: {tokens / parameters:.2g} a parameter, {why}"]

    def whole_rows(tokens: int) -> int:
        return max(1, tokens // settings.context_length) * settings.context_length

    rule = whole_rows(2 ** math.floor(math.log2(BATCH * (tokens / BATCH_AT) ** BATCH_POWER)))
    # A step of more tokens than the training has would read them again and again, whatever the mixture allows.
    batch = min(whole_rows(settings.batch_tokens), whole_rows(tokens)) if settings.batch_tokens else rule
    why = f"{BATCH:,} x (tokens / {BATCH_AT / 1e6:g}M)^{BATCH_POWER} (Power Lines, Bergsma et al. 2025), a power of two"
    if settings.batch_tokens:
        why = "as the recipe says"
        if batch < whole_rows(settings.batch_tokens):
            why = f"all in one step, fewer than the {settings.batch_tokens:,} of the recipe"
        if batch != rule:
            ratio = math.sqrt(batch / rule)
            why += f"; {rule:,} by the rule, and lr_scale = {ratio:.2g} would follow it (nanochat)"
    reasons.append(f"{batch:,} tokens per step: {why}, in whole rows")
    lr = MATRIX_LR * settings.lr_scale
    if settings.weight_decay is not None:
        decay = settings.weight_decay
        reasons.append(f"weight decay {decay:g}: as the recipe says")
    elif tokens < DECAY_FROM:
        decay = 0.0
        reasons.append(f"no weight decay under {DECAY_FROM / 1e6:g}M tokens: at 4M it did harm (docs/log.md)")
    else:
        memory = MEMORY * (tokens / parameters) ** MEMORY_POWER
        decay = batch / (lr * memory * tokens)
        reasons.append(
            f"weight decay {decay:.3g} of matrices: a weight remembers {memory:.0%} of the training "
            f"({MEMORY} x (tokens / parameters)^{MEMORY_POWER}, Power Lines)"
        )
    return Budget(tokens, batch, decay, reasons)
