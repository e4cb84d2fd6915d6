"""Settings of fine-tuning, preferences, the reward model, DPO and PPO."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from groundup.core.config import LARGEST, Batch, Epochs, Positive, PositiveFloat, Rate, SaveDtype, Section, Share

# Files or folders of a user's own rows (data/contracts.py), one or a list of them.
Files = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)]


class SftConfig(Section):
    data: Files = []  # conversations to learn from; empty: questions made from docstrings
    max_objects: Positive = 6000
    epochs: Epochs = 1
    batch_examples: Batch = 64
    learning_rate: Rate = 5e-4
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
    epochs: Epochs = 1
    batch_pairs: Batch = 32
    learning_rate: Rate = 1e-4
    save_dtype: SaveDtype = ""


class DpoConfig(Section):
    data: Files = []  # as reward.data
    beta: PositiveFloat = 0.1
    epochs: Epochs = 1
    batch_pairs: Batch = 32
    learning_rate: Rate = 2e-5
    save_dtype: SaveDtype = ""


class PpoConfig(Section):
    data: Files = []  # prompts, preferences or conversations to take prompts from; empty: those that preferences were made of
    iterations: Annotated[int, Field(gt=0, le=10**6)] = 30
    rollouts: Batch = 256
    minibatches: Batch = 4
    epochs: Epochs = 1
    kl_coefficient: Annotated[float, Field(ge=0, le=LARGEST)] = 0.05
    clip: PositiveFloat = 0.2
    learning_rate: Rate = 2e-5
    save_dtype: SaveDtype = ""
