"""What the card of a model says of its training (`model/card.py`), from the results of the step that made it."""

from typing import Any

from groundup.model.card import Card

HOW = {
    "sft": "Fine-tuned on conversations: it answers.",
    "reward": "Trained on preferences: it says which of two answers people would rather have.",
    "dpo": "Trained on preferences by direct preference optimisation (DPO): it answers.",
    "ppo": "Trained against a reward by proximal policy optimisation (PPO): it answers.",
    "grpo": "Trained against a reward by group relative policy optimisation (GRPO): it answers.",
}


def pretrained(results: dict[str, Any], language: str = "") -> Card:
    """The card of a base model, from what `training.pretraining.pretrain` returned."""
    domains = {
        f"{phase}, {domain}": f"{figures['tokens']:,} tokens, {figures['share']:.0%}, {figures['repeats']:.2f} passes"
        for phase, parts in results["mixture"].items()
        for domain, figures in parts.items()
    }
    return Card(
        "Pre-trained on raw text: it continues a text, and was not taught to answer.",
        language,
        {
            "steps": results["steps"], "tokens": results["tokens"], "FLOP": f"{results['flop']:.2e}", **domains,
        },
        {"loss at the end, nats per token": results["train_loss"], "on held-out texts": results["held_out_loss"]},
    )  # fmt: skip


def tuned(kind: str, data: dict[str, Any], figures: dict[str, Any] | None = None) -> Card:
    """The card of a model that a step of this `kind` made."""
    return Card(HOW[kind], "", _in_words(data), _in_words(figures or {}))


def _in_words(rows: dict[str, Any]) -> dict[str, Any]:
    """`baseline_mean_words` -> "baseline mean words"."""
    return {name.replace("_", " "): _in_words(value) if isinstance(value, dict) else value for name, value in rows.items()}
