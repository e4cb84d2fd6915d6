"""Shard work in several processes: results in order, Ctrl-C for the parent alone, no orphans."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(function: Callable[..., Any], jobs: Iterable[tuple], workers: int) -> Iterator[Any]:
    """`function(*job)` of each job, in the order of the jobs; in this process when there is one worker.

    At most two jobs a worker wait in memory. `function` and what it takes and gives must be picklable.
    """
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    # Forking a process that has threads, as PyTorch's, can lock up: start afresh.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        waiting: deque[Future] = deque()
        for job in jobs:
            with _interrupts_held():
                waiting.append(pool.submit(function, *job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for jobs for ever."""

    def watch() -> None:
        wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Workers start when jobs are handed in and inherit this: the parent alone answers Ctrl-C, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
