"""Where and with what a training is done: what each trainer takes besides model, tokenizer, data and settings.

Every trainer has the order `train(model, tokenizer, data, settings, runtime)`.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from groundup.core.device import Device
from groundup.training.parallel import ALONE, Processes

TRAINING = "training"  # folder in a model's folder, for what training itself writes; the model works without it
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """`folder`: of the model to be; training writes its states and metrics to `training` in it. `label`: for progress and log.

    `left_out`: counts rows that cannot be trained on, by reason.
    """

    device: Device
    folder: Path
    label: str
    seed: int = 0
    log: Callable[[str], None] = logger.info
    processes: Processes = ALONE
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def training(self) -> Path:
        return self.folder / TRAINING
