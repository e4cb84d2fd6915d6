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
    options = parser.parse_args()
    dtype = choose(options.threads).training_dtype
    tokens = np.asarray(TokenFile(options.tokens / "train").tokens)
    vocabulary = int(tokens.max()) + 1

    def rows(step: int) -> torch.Tensor:
        drawn = np.random.default_rng(step).integers(0, len(tokens) - options.context - 1, options.rows)
        return torch.from_numpy(np.stack([tokens[at : at + options.context + 1].astype(np.int64) for at in drawn]))

    flat, moved = {}, {}
    for rule in transfer.RULES:
        sizes_of = transfer.coordinate_check(options.widths, rule, rows, vocabulary, options.context, options.steps, dtype=dtype)
        for name, sizes in sizes_of.items():
            shown = "  ".join(f"{width}: {size:.4g}" for width, size in sizes.items())
            print(f"{rule:<5} {name:<22} {shown}  (largest over smallest {transfer.spread(sizes):.2f})", flush=True)
        flat[rule] = max(transfer.spread(sizes) for sizes in sizes_of.values())
        best = {}
        for width in options.widths if options.rates else ():
            [losses] = transfer.losses_by_scale(
                [width], SCALES, rule, rows, vocabulary, options.context, 10 * options.steps, dtype=dtype
            ).values()
            best[width], best_loss = transfer.best_scale(losses)
            shown = "  ".join(f"{scale:.2f}: {loss:.3f}" for scale, loss in losses.items())
            print(f"{rule:<5} width {width}: best lr_scale {best[width]:.2f}, loss {best_loss:.3f}  ({shown})", flush=True)
        moved[rule] = transfer.spread(best) if best else None
    allowed = f"times of {transfer.STEP} allowed"
    moves = {rule: f"; best rate moves {move:.2f} {allowed}" if move else "" for rule, move in moved.items()}
    holds = flat["ours"] <= transfer.FLAT and (moved["ours"] is None or moved["ours"] <= transfer.STEP)
    conclude(
        f"activations over widths {min(options.widths)} to {max(options.widths)}, largest over smallest{moves['ours']}",
        flat["ours"], "", transfer.FLAT, holds, peer=f"the rule before{moves['root']}", peer_figure=flat["root"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
