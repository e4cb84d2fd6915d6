"""A mixture of experts with the balance loss: busiest expert over the mean, dead experts; and without it, the collapse.

Bytes of four kinds of text, 2 layers of 8 experts, 2 a byte; the same batches with and without. Then what the experts are
for: their domains and the bytes that they are surest of.
"""

import time

import pyarrow.parquet as pq
import torch

from common import arguments, conclude
from groundup.device import choose
from groundup.model import decoder, moe
from groundup.model.decoder import Decoder, with_experts
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, pretraining_rates
from groundup.training.schedule import warmup_stable_decay

DOMAINS = ("openstax", "novels100", "peps_rustbook", "math_latex")
CONTEXT, ROWS, STEPS, BALANCE, Z = 128, 16, 120, 0.01, 0.001


def main() -> None:
    folder = arguments(__doc__).data / "text"
    if not folder.exists():
        conclude(__doc__.splitlines()[0], None, "max / mean load", 1.3, None, reason=f"{folder} is missing")
        return
    texts = {name: bytes_of(folder / f"{name}.parquet") for name in DOMAINS}
    found = {name: train(texts, coefficient) for name, coefficient in (("with", BALANCE), ("without", 0.0))}
    held_out = {name: data[-8 * CONTEXT :].view(-1, CONTEXT) for name, data in texts.items()}
    every = torch.cat(list(held_out.values()))
    print(f"{'':8} {'max/mean load':>14} {'dead':>5} {'router entropy':>15} {'nats a byte':>12} {'seconds':>8}")
    measured = {}
    for name, (model, seconds) in found.items():
        with torch.no_grad(), moe.recorded(model) as routings:
            loss, _ = next_token(model, batch_of(every), torch.float32)
        measured[name] = one = moe.metrics(routings, moe.load(routings))
        print(
            f"{name:8} {one['max_load']:14.3f} {one['dead_experts']:5.0f} {one['router_entropy']:15.3f} "
            f"{loss.item():12.3f} {seconds:8.1f}"
        )
    model = found["with"][0]
    for layer in range(2):
        print(f"\nlayer {layer}: part of each domain's choices by expert")
        for domain, shares in moe.domain_table(model, {name: [ids] for name, ids in held_out.items()}, layer).items():
            print(f"{domain:14}", " ".join(f"{share:5.2f}" for share in shares))
        for expert, places in enumerate(moe.token_samples(model, every, layer, 6)):
            before = [bytes(every[row, max(0, time - 7) : time + 1].tolist()) for row, time, _ in places]
            print(f"expert {expert}:", *(repr(text.decode("utf-8", "replace")) for text in before))
    even, free = measured["with"], measured["without"]
    conclude(
        "with the balance loss: max / mean load of held-out text, no dead expert",
        even["max_load"],
        "max / mean load",
        1.3,
        even["max_load"] <= 1.3 and not even["dead_experts"],
        peer=f"without it ({free['dead_experts']:.0f} of 16 dead)",
        peer_figure=free["max_load"],
    )


def bytes_of(path: object) -> torch.Tensor:
    text = "\n".join(pq.read_table(path, columns=["text"])["text"].slice(0, 40).to_pylist())
    return torch.frombuffer(bytearray(text.encode()[:400_000]), dtype=torch.uint8).long()


def batch_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    ids, targets = rows[:, :-1], rows[:, 1:]
    return {"ids": ids, "targets": targets, "weight": torch.full(ids.shape, 1 / ids.numel())}


def train(texts: dict[str, torch.Tensor], balance: float) -> tuple[Decoder, float]:
    config, _ = with_experts(decoder.shape_for(2, 256, CONTEXT)[0], 8, 2)
    model = Decoder(config)
    decoder.initialise(model, 0)
    dtype = choose().training_dtype
    optimizer = Optimizer(model, pretraining_rates(config.hidden_size)[0], dtype=dtype)
    generator, start = torch.Generator().manual_seed(0), time.perf_counter()
    for step in range(STEPS):
        rows = [
            data[at : at + CONTEXT + 1]
            for data in texts.values()
            for at in torch.randint(len(data) - 9 * CONTEXT, (ROWS // len(texts),), generator=generator).tolist()
        ]
        with moe.recorded(model) as routings:
            loss, _ = next_token(model, batch_of(torch.stack(rows)), dtype)
        even, small = moe.auxiliary_losses(routings, moe.load(routings))
        (loss + balance * even + Z * small).backward()
        optimizer.step(warmup_stable_decay(step, STEPS, 5, STEPS // 2))
    return model, time.perf_counter() - start


if __name__ == "__main__":
    main()
