"""RegMix's runs: how well laws of 512 mixtures of models of 1M parameters rank the losses of other mixtures and larger models.

Rank correlation (Spearman) of predicted and measured losses of Pile-CC, RegMix's target, on 256 unseen mixtures at 1M, 256 at 60M
and 64 at 1B parameters. The figure is that at 1B of the law with square roots; the bar there is 0.91, and 0.98 at 1M and 60M.
"""

from pathlib import Path

import numpy as np

from common import arguments, conclude
from groundup.scaling import mixture_laws

TARGET = "pile_cc"
BARS = {"1m": 0.98, "60m": 0.98, "1B": 0.91}


def main() -> None:
    options = arguments(__doc__)
    claim = "RegMix: rank correlation at 1B parameters from 512 runs of 1M (0.98 or more at 1M and 60M)"
    folder = options.data / "scaling" / "regmix"
    if not (folder / "train_mixture_1m.csv").exists():
        return conclude(claim, None, "Spearman", BARS["1B"], None, reason=f"{folder} is missing; give --data DIR")
    _, weights = table(folder / "train_mixture_1m.csv")
    names, losses = table(folder / "train_pile_loss_1m.csv")
    target = next(index for index, name in enumerate(names) if TARGET in name)
    correlations = {}
    print(f"{'law':14} {'unseen folds':>12} " + " ".join(f"{size:>8}" for size in BARS) + "   mean of all targets")
    for kind in mixture_laws.KINDS:
        law = mixture_laws.fit(weights, losses[:, target], kind)
        every = [mixture_laws.fit(weights, column, kind) for column in losses.T]
        correlations[kind], means = {}, []
        for size in BARS:
            _, others = table(folder / f"test_mixture_{size}.csv")
            _, measured = table(folder / f"test_pile_loss_{size}.csv")
            correlations[kind][size] = mixture_laws.rank_correlation(law.loss(others), measured[:, target])
            pairs = zip(every, measured.T, strict=True)
            means.append(np.mean([mixture_laws.rank_correlation(fitted.loss(others), column) for fitted, column in pairs]))
        unseen = mixture_laws.unseen_rank_correlation(weights, losses[:, [target]], kind)
        print(
            f"{kind:14} {unseen:12.4f} " + " ".join(f"{correlations[kind][size]:8.4f}" for size in BARS)
            + "   " + " ".join(f"{mean:.4f}" for mean in means)
        )  # fmt: skip
    best = correlations["square-roots"]
    conclude(claim, best["1B"], "Spearman", BARS["1B"], all(best[size] >= bar for size, bar in BARS.items()))


def table(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the columns, and their values (runs, columns), without the index."""
    with path.open(encoding="utf-8") as file:
        names = file.readline().strip().split(",")[1:]
    return names, np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]


if __name__ == "__main__":
    main()
