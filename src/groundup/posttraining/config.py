"""Settings of fine-tuning, preferences, the reward model, DPO, PPO and GRPO."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from groundup.core.config import LARGEST, Batch, Epochs, Positive, PositiveFloat, Rate, SaveDtype, Section, Share

# Files or folders of a user's own rows (data/contracts.py), one or a list of them.
Files = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)]
Loss = Literal[
    "sigmoid", "conservative", "robust", "hinge", "ipo", "sigmoid_norm", "simpo", "exo_pair", "nca_pair", "bco_pair",
    "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip


class SftConfig(Section):
    data: Files = []  # conversations to learn from; empty: questions made from docstrings
    held_out: Files = []  # conversations to measure on; empty: a tenth of the prompts of `data`
    strict: bool = False  # what preflight.py finds in the rows ends the step
    max_objects: Positive = 6000
    epochs: Epochs = 1
    batch_examples: Batch = 64
    examples_at_once: Annotated[int, Field(ge=0, le=10**6)] = 0  # of a batch, to spare memory; 0: all
    packing: bool = False  # conversations of a batch share rows, none seeing another: less padding, the same loss
    weighting: Literal["token", "example"] = "token"  # what of a batch counts alike: each token learned, or each conversation
    learning_rate: Rate = 5e-4
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
    learning_rate: Rate = 1e-4
    save_dtype: SaveDtype = ""


class DpoConfig(Section):
    data: Files = []  # as reward.data
    held_out: Files = []  # as reward.held_out
    strict: bool = False  # as sft.strict
    loss: Loss = "sigmoid"  # preference_losses.py has them all
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
    learning_rate: Rate = 2e-5
    lora_rank: Annotated[int, Field(ge=0, le=65_536)] = 0  # as sft.lora_rank
    save_dtype: SaveDtype = ""


Coefficient = Annotated[float, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Temperature = Annotated[float, Field(gt=0, le=100)]
Iterations = Annotated[int, Field(gt=0, le=10**6)]


class PpoConfig(Section):
    data: Files = []  # prompts, preferences or conversations to take prompts from; empty: those that preferences were made of
    held_out: Files = []  # prompts to measure the reward on, before and after; empty: a tenth of those of `data`
    strict: bool = False  # what preflight.py finds in the prompts and in the first answers ends the step
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
    learning_rate: Rate = 2e-5
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
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"] = "dapo"
    importance: Literal["token", "sequence"] = "token"  # "sequence": GSPO
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    beta: Coefficient = 0.0  # of the divergence from the reference in the loss
    mask_truncated: bool = False  # answers that did not end teach nothing
    learning_rate: Rate = 2e-5
    samples_every: Positive = 10
    save_dtype: SaveDtype = ""
