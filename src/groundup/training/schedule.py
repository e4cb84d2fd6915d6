"""Learning rate over a run: warm-up, stable, decay (Hu et al. 2024, MiniCPM; linear decay as in modded-nanogpt)."""


def warmup_stable_decay(step: int, steps: int, warmup: int, decay: int) -> float:
    """Multiplier of the peak learning rate at `step` of `steps`: up over `warmup`, then 1, then linearly to 0 over `decay`."""
    if step < warmup:
        return (step + 1) / warmup
    remaining = steps - step
    return remaining / decay if remaining < decay else 1.0
