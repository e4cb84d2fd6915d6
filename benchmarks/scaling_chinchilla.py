"""Chinchilla's runs, as Besiroglu et al. 2024 read them off a figure, fitted again: their law and ours, with intervals.

The figure is the processor time of 200 resamplings of our fit, which other programs hardly disturb.
It holds when that is under 5 seconds and each
parameter that they publish lies in the 95 % interval of both fits.
"""

import time

from common import arguments, conclude
from groundup.scaling import isoflop, laws, run_table, study

PUBLISHED = {"A": 482.01, "B": 2085.43, "E": 1.8172, "alpha": 0.3478, "beta": 0.3658}
SECONDS = 5.0


def main() -> None:
    options = arguments(__doc__)
    claim = "Chinchilla's runs: the published law inside the intervals of both fits; processor seconds of 200 resamplings"
    path = options.data / "scaling" / "chinchilla_runs.csv"
    if not path.exists():
        return conclude(claim, None, "s", SECONDS, None, reason=f"{path} is missing; give --data DIR")
    table = run_table.read(path)
    start, worked = time.perf_counter(), time.process_time()
    ours = laws.fit(table, draws=200)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    theirs = laws.by_many_starts(table, draws=200)
    print(f"{len(table)} runs; 200 resamplings in {seconds:.2f} s, {worked:.2f} s of them of this process")
    print(f"{'':6} {'published':>10} {'their recipe (95 %)':>30} {'variable projection (95 %)':>30}")
    inside = True
    for name in laws.NAMES:
        rows = theirs.summary()[name], ours.summary()[name]
        texts = [f"{row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})" for row in rows]
        print(f"{name:6} {PUBLISHED.get(name, float('nan')):10.4f} {texts[0]:>30} {texts[1]:>30}")
        if name in PUBLISHED:
            inside &= all(low <= PUBLISHED[name] <= high for low, high in (fit.interval(name) for fit in (ours, theirs)))
    for name, line in (("1", isoflop.approach1(table)), ("2", isoflop.approach2(table))):
        print(f"approach {name}: {line.summary()}")
    for row in study.sensitivity(table):
        law = row["law"]
        exponents = {name: law[name] for name in laws.NAMES[2:]}
        texts = [f"{name} {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for name, row in exponents.items()]
        print(f"{row['runs_kept']:36} {row['n']:4} runs: {', '.join(texts)}")
    beyond = study.held_out(table)
    print(
        f"largest {beyond['n']} held out, up to {beyond['compute_beyond']:.1f} times the compute: mean error "
        f"{beyond['mean_error']:.2%}, largest {beyond['largest_error']:.2%}, {beyond['covered']} inside their intervals"
    )
    conclude(
        claim, worked, "s", SECONDS, inside and worked < SECONDS,
        reason=None if inside else "a published value lies outside an interval",
    )  # fmt: skip


if __name__ == "__main__":
    main()
