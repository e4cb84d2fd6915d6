"""A mixture of experts should train at 0.6 of the rate of the dense model, and an LSTM four times as fast as by PyTorch.

Of `model_table`'s depth 3, in the processor's number format: the mixture has as many active parameters as the dense model, and
the LSTM beside ours has its steps by PyTorch. Head, loss and optimizer are kernels on all sides. By turns, all cores, by the
clock; medians. `GROUNDUP_KERNELS=avx2` has it in float32 on any processor.
"""

import argparse

import torch

import training_throughput as sizes
from common import conclude, machine
from groundup.core.device import choose
from groundup.kernels import Unavailable
from groundup.model import architectures
from groundup.model.base import LanguageModel
from groundup.training.objectives import BalancedNextToken, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from training_float32 import Step, by_turns

CLAIM, EXPERTS_BAR, LSTM_BAR = "tokens a second of a mixture of experts in training, over those of the dense model", 0.6, 4.0
DEPTH, DOCUMENT = 3, 100  # tokens of a document in their rows, about


def step_of(name: str, by_kernels: bool, dtype: torch.dtype) -> Step:
    """A step of one of `model_table`; `by_kernels` false: head, loss and optimizer only."""
    model = architectures.build(name, DEPTH, sizes.VOCABULARY, sizes.CONTEXT, seed=0)[0]
    use = type(model).use_kernels if by_kernels else LanguageModel.use_kernels
    use(model, sizes.CONTEXT, dtype)
    optimizer = Optimizer(model, pretraining_lrs(model.config.hidden_size)[0], dtype=dtype, kernels=True)
    ids, shape = sizes.random_ids(sizes.VOCABULARY), (sizes.ROWS, sizes.CONTEXT)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "ids": ids[:, :-1], "targets": ids[:, 1:].contiguous(), "weight": torch.full(shape, 1 / (shape[0] * shape[1])),
        "documents": (torch.rand(shape, generator=generator) < 1 / DOCUMENT).cumsum(1), "last": torch.tensor(True),
    }  # fmt: skip
    balanced = BalancedNextToken(dtype, 0.02)

    def step() -> None:
        (balanced(model, batch) if name == "experts" else next_token(model, batch, dtype))[0].backward()
        optimizer.step(1.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options, _ = parser.parse_known_args()
    dtype = choose().training_dtype
    kinds = {"dense": True, "experts": True, "lstm": True, "lstm by PyTorch": False}
    try:
        steps = {name: step_of(name.split()[0], native, dtype) for name, native in kinds.items()}
    except Unavailable as error:
        return conclude(CLAIM, None, "times", EXPERTS_BAR, None, reason=str(error))
    seconds_of = by_turns(steps, options.rounds)
    print(f"{machine()}, {dtype}", *(f"{name:<16} {1e3 * seconds:6.0f} ms" for name, seconds in seconds_of.items()), sep="\n")
    experts, lstm = seconds_of["dense"] / seconds_of["experts"], seconds_of["lstm by PyTorch"] / seconds_of["lstm"]
    note = f"{dtype}; an LSTM over its steps by PyTorch (bar {LSTM_BAR:.0f})"
    conclude(CLAIM, experts, "times", EXPERTS_BAR, experts >= EXPERTS_BAR and lstm >= LSTM_BAR, peer=note, peer_figure=lstm)


if __name__ == "__main__":
    main()
