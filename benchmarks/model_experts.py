"""A mixture of experts with the balance loss: busiest expert over the mean, dead experts; and without it, the collapse.

Bytes of four kinds of text, 2 layers of 8 experts, 2 a byte; the same batches with and without. Then what the experts are
for: their domains and the bytes that they are surest of. Beside them a dense model of equal active parameters, trained
for as long as the balanced mixture took.
"""

import time

import pyarrow.parquet as pq
import torch

from common import arguments, conclude
from groundup.core.device import choose
from groundup.model import architectures, moe
from groundup.model.base import LanguageModel
from groundup.training.objectives import BalancedNextToken, next_token
from groundup.training.optimizer import Optimizer, pretraining_lrs
from groundup.training.schedule import warmup_stable_decay

DOMAINS = ("openstax", "novels100", "peps_rustbook", "math_latex")
CONTEXT, ROWS, STEPS, BALANCE = 128, 16, 300, 0.02
COLLAPSED = 2.0  # of at most 4: the busiest of 8 experts is one of every byte's 2


def main() -> None:
    folder = arguments(__doc__).data / "text"
    if not folder.exists():
        conclude(__doc__.splitlines()[0], None, "max / mean load", 1.3, None, reason=f"{folder} is missing")
        return
    texts = {name: bytes_of(folder / f"{name}.parquet") for name in DOMAINS}
    held_out = {name: data[-8 * CONTEXT :].view(-1, CONTEXT) for name, data in texts.items()}
    every = torch.cat(list(held_out.values()))
    measured, models, seconds = {}, {}, None
    print(f"{'':16} {'active':>8} {'max/mean load':>14} {'dead':>5} {'router entropy':>15} {'nats a byte':>12} {'seconds':>8}")
    for name, balance in (("balanced", BALANCE), ("without balance", 0.0), ("dense", None)):
        models[name] = model = architectures.build("dense" if balance is None else "experts", 2, 256, CONTEXT, seed=0)[0]
        took, trace = train(model, texts, balance, seconds)
        seconds = seconds or took
        with torch.no_grad(), moe.recorded(model) as routings:
            loss, _ = next_token(model, batch_of(every), torch.float32)
        metrics = measured[name] = moe.metrics(routings, moe.load(routings)) if routings else {}
        shown = " ".join(
            f"{metrics[key]:{width}}" if metrics else f"{'':{width.split('.')[0]}}"
            for key, width in (("max_load", "14.3f"), ("dead_experts", "5.0f"), ("router_entropy", "15.3f"))
        )
        print(f"{name:16} {moe.active_parameters(model):8,} {shown} {loss.item():12.3f} {took:8.1f}")
        if trace:
            print("  max/mean load in training:", " ".join(f"{row['max_load']:.2f}" for row in trace[:: len(trace) // 10]))
    for layer in range(2):
        print(f"\nlayer {layer}: part of each domain's choices by expert")
        for domain, shares in moe.domain_table(
            models["balanced"], {name: [ids] for name, ids in held_out.items()}, layer
        ).items():
            print(f"{domain:14}", " ".join(f"{share:5.2f}" for share in shares))
        for expert, positions in enumerate(moe.token_samples(models["balanced"], every, layer, 6)):
            before = [bytes(every[row, max(0, time - 7) : time + 1].tolist()) for row, time, _ in positions]
            print(f"expert {expert}:", *(repr(text.decode("utf-8", "replace")) for text in before))
    even, free = measured["balanced"], measured["without balance"]
    conclude(
        "with the balance loss: max / mean load of held-out text, no dead expert; without it the router collapses",
        even["max_load"],
        "max / mean load",
        1.3,
        even["max_load"] <= 1.3 and not even["dead_experts"] and free["max_load"] >= COLLAPSED,
        peer=f"without it ({free['dead_experts']:.0f} of 16 dead)",
        peer_figure=free["max_load"],
    )


def bytes_of(path: object) -> torch.Tensor:
    text = "\n".join(pq.read_table(path, columns=["text"])["text"].slice(0, 40).to_pylist())
    return torch.frombuffer(bytearray(text.encode()[:400_000]), dtype=torch.uint8).long()


def batch_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    ids, targets = rows[:, :-1], rows[:, 1:]
    weight = torch.full(ids.shape, 1 / ids.numel())
    return {"ids": ids, "targets": targets, "weight": weight, "last": torch.tensor(True)}


def train(
    model: LanguageModel, texts: dict[str, torch.Tensor], balance: float | None, limit: float | None
) -> tuple[float, list[dict[str, float]]]:
    """STEPS steps of a mixture, or of a dense model (balance None) as many as fit in `limit` seconds; seconds, metrics."""
    dtype = choose().training_dtype
    objective = BalancedNextToken(dtype, balance or 0.0)
    optimizer = Optimizer(model, pretraining_lrs(model.config.hidden_size)[0], dtype=dtype)
    generator, start, trace = torch.Generator().manual_seed(0), time.perf_counter(), []
    while True:
        step, took = len(trace), time.perf_counter() - start
        share = step / STEPS if balance is not None else took / limit
        if share >= 1:
            return took, trace if balance is not None else []
        rows = [
            data[at : at + CONTEXT + 1]
            for data in texts.values()
            for at in torch.randint(len(data) - 9 * CONTEXT, (ROWS // len(texts),), generator=generator).tolist()
        ]
        batch = batch_of(torch.stack(rows))
        loss, metrics = next_token(model, batch, dtype) if balance is None else objective(model, batch)
        loss.backward()
        optimizer.step(warmup_stable_decay(int(1000 * share), 1000, 20, 500))
        trace.append(metrics)


if __name__ == "__main__":
    main()
