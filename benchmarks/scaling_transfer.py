"""Activations keep their size over widths 64 to 512, and the best rate stays, by our rule and by the one before.

`--tokens DIR`: token files (the folder tokens of a run). Rates are swept in steps of 1.4, which takes long; not by `--no-rates`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from common import conclude
from groundup.core.device import choose
from groundup.data.token_files import TokenFile
from groundup.scaling import transfer

WIDTHS = (64, 128, 256, 512)
SCALES = tuple(transfer.STEP**power for power in range(-2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--rates", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    dtype = choose(given.threads).training_dtype
    tokens = np.asarray(TokenFile(given.tokens / "train").tokens)
    vocabulary = int(tokens.max()) + 1

    def rows(step: int) -> torch.Tensor:
        drawn = np.random.default_rng(step).integers(0, len(tokens) - given.context - 1, given.rows)
        return torch.from_numpy(np.stack([tokens[at : at + given.context + 1].astype(np.int64) for at in drawn]))

    flat, moved = {}, {}
    for rule in transfer.RULES:
        found = transfer.coordinates(given.widths, rule, rows, vocabulary, given.context, given.steps, dtype=dtype)
        for name, sizes in found.items():
            shown = "  ".join(f"{width}: {size:.4g}" for width, size in sizes.items())
            print(f"{rule:<5} {name:<22} {shown}  (largest over smallest {transfer.spread(sizes):.2f})", flush=True)
        flat[rule] = max(transfer.spread(sizes) for sizes in found.values())
        best = {}
        for width in given.widths if given.rates else ():
            [losses] = transfer.best_scales(
                [width], SCALES, rule, rows, vocabulary, given.context, 10 * given.steps, dtype=dtype
            ).values()
            best[width], least = transfer.best_of(losses)
            shown = "  ".join(f"{scale:.2f}: {loss:.3f}" for scale, loss in losses.items())
            print(f"{rule:<5} width {width}: best lr_scale {best[width]:.2f}, loss {least:.3f}  ({shown})", flush=True)
        moved[rule] = transfer.spread(best) if best else None
    allowed = f"times of {transfer.STEP} allowed"
    rate = {rule: f"; best rate moves {move:.2f} {allowed}" if move else "" for rule, move in moved.items()}
    holds = flat["ours"] <= transfer.FLAT and (moved["ours"] is None or moved["ours"] <= transfer.STEP)
    conclude(
        f"activations over widths {min(given.widths)} to {max(given.widths)}, largest over smallest{rate['ours']}",
        flat["ours"], "", transfer.FLAT, holds, peer=f"the rule before{rate['root']}", peer_figure=flat["root"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
