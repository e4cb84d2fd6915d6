"""Runs the work on shards: in this process and others, or as Ray tasks on a cluster; the code and the bytes are the same.

Both are executors of the standard `concurrent.futures`; this process is the first of the workers. A job is a function of
a module and its arguments, and its outcome depends on nothing else, so it does not matter where it runs, how many run at
once, or whether it ran before: the jobs of a worker that dies are done again. One shard is one job and one file, as with
datatrove's marker files, but the shards are cut by their content and not by the number of tasks, so a run may resume
with another number of workers.
"""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

from groundup.core import log
from groundup.core.errors import UserError
from groundup.core.garbage import collect_seldom

ATTEMPTS = 3  # a job whose worker dies each time kills it itself: by its memory, most often
AHEAD = 2  # waiting jobs per helper, so that none is idle while this process does a long one
HELD = 12  # jobs per helper in all, with finished ones that are behind an unfinished one


class Pool:
    """This process and its helpers, which are started when they are first needed; with Ray, only the helpers."""

    def __init__(self, helpers: int, start: Callable[[], Executor | None], works_here: bool) -> None:
        self.helpers, self.start, self.works_here = helpers, start, works_here
        self.executor = start()

    def spread(
        self, function: Callable, jobs: Iterable[tuple], sent: Callable[[tuple], tuple] | None = None, held: int = HELD
    ) -> Iterator[Any]:
        """`function(*job)` of each job, in the order of the jobs; at most `held` jobs per helper are in memory at a time.

        A helper on this machine is given `sent(job)` in place of a job, again at each attempt.
        Raises what the function raises, and UserError when the helpers of a job died three times.
        """
        if self.executor is None:
            yield from (function(*job) for job in jobs)
        elif self.works_here:
            # A job waits for a thread to hand it over, so one that no helper has begun can be done here. Where `sent` takes
            # time there are two threads per helper: its next job is there when it has finished one.
            threads = ThreadPoolExecutor(self.helpers * (2 if sent else 1))
            try:
                yield from self._shared(function, jobs, sent or (lambda job: job), threads, held)
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
        else:
            waiting = deque[Future]()
            for job in jobs:
                waiting.append(self.executor.submit(function, *job))
                if len(waiting) > AHEAD * self.helpers:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)

    def _shared(
        self, function: Callable, jobs: Iterable[tuple], sent: Callable[[tuple], tuple], threads: Executor, held: int
    ) -> Iterator[Any]:
        def by_helper(job: tuple) -> Any:
            sent_job = sent(job)
            with _interrupts_held():
                outcome = self.executor.submit(function, *sent_job)
            return outcome.result()

        def hand_in(job: tuple) -> Future:
            return threads.submit(by_helper, job)

        waiting: deque[tuple[tuple, Future]] = deque()
        following = iter(jobs)
        job = next(following, None)
        while job is not None:
            next_job = next(following, None)
            waiting.append((job, hand_in(job)) if next_job is not None else ((), _done_here(function, job)))
            job = next_job
            if sum(_waits(future) for _, future in waiting) > AHEAD * self.helpers:
                _take_one(function, waiting)
            while waiting and (waiting[0][1].done() or len(waiting) > held * self.helpers):
                yield self._first(hand_in, waiting)
        while waiting:
            if waiting[0][1].done() or not _take_one(function, waiting):
                yield self._first(hand_in, waiting)

    def _first(self, hand_in: Callable[[tuple], Future], waiting: deque[tuple[tuple, Future]]) -> Any:
        for _ in range(ATTEMPTS):
            try:
                result = waiting[0][1].result()
                waiting.popleft()
                return result
            except BrokenExecutor:
                self.executor.shutdown()
                self.executor = self.start()
                for index, (job, future) in enumerate(waiting):
                    if not _waits(future) and isinstance(future.exception(), BrokenExecutor):
                        waiting[index] = (job, hand_in(job))
        raise UserError(f"a worker died {ATTEMPTS} times over the same work: take fewer workers, or free memory")


def _waits(future: Future) -> bool:
    return not (future.running() or future.done())


def _take_one(function: Callable, waiting: deque[tuple[tuple, Future]]) -> bool:
    """Do the first job here that no helper has begun; False when there is none."""
    for index, (job, future) in enumerate(waiting):
        if _waits(future) and future.cancel():
            waiting[index] = (), _done_here(function, job)
            return True
    return False


def _done_here(function: Callable, job: tuple) -> Future:
    """A future as from a helper, so that of several errors the first job's is raised, wherever they occurred."""
    future: Future = Future()
    try:
        future.set_result(function(*job))
    except Exception as error:
        future.set_exception(error)
    return future


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(workers: int, ray: str | None = None) -> Iterator[Pool]:
    """`workers` processes, this one among them, or as many Ray tasks on the cluster at address `ray`.

    With Ray, 0 workers are as many as the cluster has cores; `ray="local"` starts a cluster on this machine. Its nodes need
    the same installed groundup and, at the same path, the folder that the run is in.
    """
    if ray is not None:
        from groundup.core.ray_tasks import connected

        with connected(ray, workers) as executor:
            yield Pool(executor.workers, lambda: executor, works_here=False)
        return
    started = Pool(workers - 1, lambda: _processes(workers - 1), works_here=True)
    try:
        yield started
    finally:
        if started.executor is not None:
            started.executor.shutdown(cancel_futures=True)


class _Helper(SpawnProcess):
    """Does not run the program's main file again: a script that has no `if __name__ == "__main__"` would start again in
    every helper. Jobs are functions of modules, so nothing of that file is needed."""

    def start(self) -> None:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Afresh(SpawnContext):
    """Spawns: forking a process that has threads, as PyTorch's, can deadlock."""

    Process = _Helper


def _processes(helpers: int) -> Executor | None:
    if helpers == 0:
        return None
    return ProcessPoolExecutor(helpers, mp_context=_Afresh(), initializer=_start_worker, initargs=(log.terminal_level(),))


def _start_worker(level: int | None) -> None:
    collect_seldom()
    if level is not None:
        log.to_terminal(level)
    _end_with_parent()


def _end_with_parent() -> None:
    """End with the parent: a worker whose parent was killed would wait for jobs for ever."""

    def watch() -> None:
        wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block SIGINT: workers start when jobs are handed in and inherit that. Ctrl-C is for the parent, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
