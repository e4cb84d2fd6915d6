"""A finished run repeated does nothing, in under 3 s; `groundup --help` answers in under 0.3 s."""

import statistics
import time
from collections.abc import Callable

from common import arguments, conclude, finished_run, groundup

BAR_SECONDS, HELP_BAR_SECONDS = 3.0, 0.3


def median_seconds(call: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    folder = arguments(__doc__, run="runs/laptop").run
    finished_run(folder)
    repeated = median_seconds(lambda: finished_run(folder))
    helped = median_seconds(lambda: groundup("--help"))
    print(f"finished run repeated: {repeated:.2f} s (bar {BAR_SECONDS})")
    print(f"groundup --help: {helped:.2f} s (bar {HELP_BAR_SECONDS})")
    conclude(
        "finished run repeated, seconds",
        repeated,
        "s",
        BAR_SECONDS,
        repeated < BAR_SECONDS and helped < HELP_BAR_SECONDS,
        peer="groundup --help",
        peer_figure=helped,
    )


if __name__ == "__main__":
    main()
