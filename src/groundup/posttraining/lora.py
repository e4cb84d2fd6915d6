"""LoRA (Hu et al. 2022): the weights are frozen; for each a product of two thin matrices is trained and added.

W' = W + 2 B A, with A (rank, inputs) random and B (outputs, rank) zero, so training begins at the model itself. In peft's terms
the factor is lora_alpha / r. `W'` replaces `W` as a parametrization, so whatever reads a weight, alone or concatenated with
others, reads the adapted one; merging leaves it there. It saves optimizer memory and size on disk.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groundup.core.errors import UserError
from groundup.core.files import write_json, write_tensors
from groundup.model.base import LanguageModel
from groundup.model.decoder import Decoder

logger = logging.getLogger(__name__)

FACTOR = 2  # lora_alpha / r
FOLDER = "adapter"
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class Adapted(nn.Module):
    """A (rank, inputs) and B (outputs, rank) of one weight (outputs, inputs)."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(weight.shape[1])  # peft's, and that of nn.Linear
        initial = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(initial.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + FACTOR * self.lora_B @ self.lora_A


@contextmanager
def adapted(model: LanguageModel, rank: int, seed: int, folder: Path) -> Iterator[None]:
    """Within it, only adapters of attention and MLP are trained; at its end they are saved to `folder`/adapter and merged.

    rank: 0 for none, so that every weight is trained.
    Raises UserError for a model that is no transformer, and for a rank above that of its matrices.
    """
    if not rank:
        yield
        return
    layers = _attach(model, rank, seed)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(f"LoRA of rank {rank}: {trained:,} weights of {len(layers)} matrices are trained")
    yield
    save(model, folder / FOLDER, rank)
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight")
    model.requires_grad_(True)


def _attach(model: LanguageModel, rank: int, seed: int) -> dict[str, nn.Module]:
    if not isinstance(model, Decoder):
        raise UserError(f"lora_rank = {rank}: a {model.config.model_type} has no attention to adapt; set it to 0")
    # Experts lie in one tensor in transformers 5, which peft's adapters of a layer do not reach.
    dense = not any(name.endswith("experts") for name, _ in model.named_modules())
    targets = (*ATTENTION, *MLP) if dense else ATTENTION
    layers = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in targets}
    if rank > (smallest := min(side for layer in layers.values() for side in layer.weight.shape)):
        raise UserError(f"lora_rank = {rank}: the smallest matrix of this model has {smallest} rows or columns; set it lower")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", Adapted(layer.weight, rank, generator))
    return layers


def save(model: LanguageModel, folder: Path, rank: int) -> None:
    """The adapters as peft reads them: adapter_config.json, adapter_model.safetensors."""
    tensors: dict[str, Tensor] = {}
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            layer = name.removesuffix(".parametrizations.weight.0")
            names.add(layer.rpartition(".")[2])
            for matrix in ("lora_A", "lora_B"):
                tensors[f"base_model.model.{layer}.{matrix}.weight"] = getattr(module, matrix).detach().cpu().contiguous()
    write_tensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    description = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": rank, "lora_alpha": FACTOR * rank,
        "target_modules": sorted(names), "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    write_json(folder / "adapter_config.json", description)
