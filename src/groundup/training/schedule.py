"""Learning rate over a run: warm-up, stable, decay (Hu et al. 2024, MiniCPM; linear decay as in modded-nanogpt)."""


def warmup_stable_decay(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    """Multiplier of the peak rate at `step` of `steps`: up over `warmup`, then 1, then linearly to `final` over `decay`."""
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step
    if left < decay:
        return final + (1 - final) * left / decay
    return 1.0
