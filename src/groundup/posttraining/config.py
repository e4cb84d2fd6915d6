"""Settings of fine-tuning, preferences, the reward model, DPO, PPO and GRPO."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from groundup.core.config import (
    LARGEST,
    Batch,
    Epochs,
    LearningRate,
    Positive,
    PositiveFloat,
    SaveDtype,
    Section,
    Share,
)

# Files or folders of a user's own rows (data/contracts.py), one or a list of them.
Files = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]
Loss = Literal[
    "sigmoid", "conservative", "robust", "hinge", "ipo", "sigmoid_norm", "simpo", "exo_pair", "nca_pair", "bco_pair",
    "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip
OF_THE_BATCH = ("aot", "aot_unpaired", "sft")  # no sums over pairs, so micro-batches cannot add up to them
_DIFFERENCE = ("sigmoid", "conservative", "robust", "hinge", "ipo", "sigmoid_norm", "exo_pair", "discopop")
# The losses that use a setting: with other losses alone it would silently do nothing.
KNOWN_BY = {
    "label_smoothing": ("conservative", "robust", "exo_pair", "aot", "aot_unpaired"),
    "simpo_margin": ("simpo",),
    "discopop_tau": ("discopop",),
    "divergence": _DIFFERENCE,
    "alpha_divergence": _DIFFERENCE,
    "ld_alpha": tuple(name for name in get_args(Loss) if name != "sft"),
}  # fmt: skip


class SftConfig(Section):
    data: Files = []  # conversations to learn from; empty: questions made from docstrings
    held_out: Files = []  # conversations to measure on; empty: a tenth of the prompts of `data`
    strict: bool = False  # what data_checks.py finds in the rows ends the step
    max_objects: Positive = 6000
    epochs: Epochs = 1
    batch_examples: Batch = 64
    examples_at_once: Annotated[int, Field(ge=0, le=10**6)] = 0  # of a batch, to spare memory; 0: all
    packing: bool = False  # conversations of a batch share rows, none seeing another: less padding, the same loss
    weighting: Literal["token", "example"] = "token"  # what of a batch counts alike: each token learned, or each conversation
    learning_rate: LearningRate = 5e-4
    lora_rank: Annotated[int, Field(ge=0, le=65_536)] = 0  # of adapters that are trained and merged; 0: every weight is trained
    max_answer_tokens: Annotated[int, Field(gt=0, le=2**20)] = 64
    held_out_questions: Positive = 600
    save_dtype: SaveDtype = ""


class PreferencesConfig(Section):
    prompts: Positive = 1500
    held_out_prompts: Positive = 400
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0  # beyond, every token is as likely as any other
    min_gap: Share = 0.05  # pairs closer than this in overlap are ties and teach nothing


class RewardConfig(Section):
    data: Files = []  # preferences to learn from; empty: those of the simulated annotator
    held_out: Files = []  # preferences to measure on; empty: a tenth of the prompts of `data`
    strict: bool = False  # as sft.strict
    centring: Annotated[float, Field(ge=0, le=LARGEST)] = 0.01  # of the squared sum of a pair's rewards (Eisenstein et al. 2023)
    epochs: Epochs = 1
    batch_pairs: Batch = 32
    pairs_at_once: Annotated[int, Field(ge=0, le=10**6)] = 0  # as dpo.pairs_at_once
    learning_rate: LearningRate = 1e-4
    save_dtype: SaveDtype = ""


class DpoConfig(Section):
    data: Files = []  # as reward.data
    held_out: Files = []  # as reward.held_out
    strict: bool = False  # as sft.strict
    loss: Loss | dict[Loss, float] = "sigmoid"  # preference_losses.py has them all; or several, each with its weight
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # share of wrong labels, for the losses that know of it
    simpo_margin: Annotated[float, Field(ge=0, le=LARGEST)] = 0.0  # SimPO's gamma
    discopop_tau: PositiveFloat = 0.05
    ld_alpha: Share = 1.0  # what tokens beyond the shorter answer count; below one: LD-DPO
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    alpha_divergence: PositiveFloat = 0.5  # alpha of the divergence of that name
    epochs: Epochs = 1
    batch_pairs: Batch = 32
    pairs_at_once: Annotated[int, Field(ge=0, le=10**6)] = 0  # of a batch, to spare memory; 0: all
    learning_rate: LearningRate = 2e-5
    lora_rank: Annotated[int, Field(ge=0, le=65_536)] = 0  # as sft.lora_rank
    save_dtype: SaveDtype = ""

    @field_validator("loss", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        losses = {value: 1.0} if isinstance(value, str) else value
        if not isinstance(losses, dict) or not losses:
            raise ValueError("expected the name of a loss, or several with weights, as {sigmoid = 0.8, sft = 0.2}")
        for name, weight in losses.items():
            if name not in get_args(Loss):
                raise ValueError(f"there is no loss {str(name)[:40]!r}; known: {', '.join(get_args(Loss))}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= LARGEST:
                raise ValueError(f"the weight of {name} must be a number above 0, not {str(weight)[:40]}")
        return value

    @model_validator(mode="after")
    def _together(self) -> "DpoConfig":
        """Refuses settings that would do nothing, or cannot work, with the losses."""
        names = ", ".join(self.losses)
        for name, losses in KNOWN_BY.items():
            if getattr(self, name) != type(self).model_fields[name].default and not set(losses) & set(self.losses):
                raise ValueError(f"{name} = {getattr(self, name)}: {names} does not know it; known to {', '.join(losses)}")
        if self.divergence != "reverse_kl" and (unfit := [loss for loss in self.losses if loss not in (*_DIFFERENCE, "sft")]):
            raise ValueError(f"divergence = {self.divergence}: {unfit[0]} has no other than reverse_kl")
        if self.alpha_divergence != 0.5 and self.divergence != "alpha_divergence":
            raise ValueError(f"alpha_divergence = {self.alpha_divergence}: is of divergence = alpha_divergence alone")
        if "exo_pair" in self.losses and not self.label_smoothing:
            raise ValueError("label_smoothing = 0: exo_pair takes the logarithm of it; set it to 0.001")
        if self.pairs_at_once and (batch_losses := [loss for loss in self.losses if loss in OF_THE_BATCH]):
            raise ValueError(f"pairs_at_once = {self.pairs_at_once}: {batch_losses[0]} is of a whole batch; leave it 0")
        return self

    @property
    def losses(self) -> dict[Loss, float]:
        """Each with its weight."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else self.loss

    @property
    def of_the_batch(self) -> bool:
        return any(loss in OF_THE_BATCH for loss in self.losses)


Coefficient = Annotated[float, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Temperature = Annotated[float, Field(gt=0, le=100)]
Iterations = Annotated[int, Field(gt=0, le=10**6)]


class PpoConfig(Section):
    data: Files = []  # prompts, preferences or conversations to take prompts from; empty: those that preferences were made of
    held_out: Files = []  # prompts to measure the reward on, before and after; empty: a tenth of those of `data`
    strict: bool = False  # what data_checks.py finds in the prompts and in the first answers ends the step
    reward: str = ""  # a folder, `arithmetic`, `length`, `count=WORD` or `module:function`; empty: the reward model of the run
    iterations: Iterations = 30
    rollouts: Batch = 256
    minibatches: Batch = 4
    epochs: Epochs = 1
    temperature: Temperature = 1.0  # of the answers, and of the probabilities that are compared
    missing_end_reward: Number | Literal["off"] = -3.0  # normalised; at -1 rambling on beats a poor answer
    whiten_rewards: bool = False
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    kl_coefficient: Coefficient = 0.05
    kl_target: Coefficient = 0.0  # nats an answer that the coefficient is adapted to; 0: it is fixed
    kl_horizon: Positive = 10_000  # answers in which it adapts
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_coefficient: Coefficient = 0.1
    learning_rate: LearningRate = 2e-5
    samples_every: Positive = 10  # iterations from one table of samples to the next
    save_dtype: SaveDtype = ""


class GrpoConfig(Section):
    data: Files = []  # as ppo.data
    held_out: Files = []  # as ppo.held_out
    strict: bool = False  # as ppo.strict
    reward: str = ""  # as ppo.reward
    iterations: Iterations = 30
    prompts: Batch = 32  # of an iteration
    generations: Annotated[int, Field(ge=2, le=10**6)] = 8  # answers to each of them, a group
    minibatches: Batch = 1
    epochs: Epochs = 1
    temperature: Temperature = 1.0
    baseline: Literal["group", "leave_one_out"] = "group"
    scale_rewards: Literal["group", "batch", "none"] = "group"  # "none" with loss_type "dr_grpo": Dr. GRPO
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    importance: Literal["token", "sequence"] = "token"  # "sequence": GSPO
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    beta: Coefficient = 0.0  # of the divergence from the reference in the loss
    mask_truncated: bool = False  # answers that did not end teach nothing
    learning_rate: LearningRate = 2e-5
    samples_every: Positive = 10
    save_dtype: SaveDtype = ""

    @model_validator(mode="after")
    def _together(self) -> "GrpoConfig":
        """Refuses settings that would do nothing, or cannot work, together."""
        if self.loss_type == "vespo" and self.importance == "sequence":
            raise ValueError("importance = sequence: vespo weighs whole answers by itself; leave it token")
        if self.baseline == "leave_one_out" and self.scale_rewards == "batch":
            raise ValueError("scale_rewards = batch: leave_one_out is not divided by a deviation; leave one of them out")
        return self
