import os
import signal
import time

import pytest

from groundup import workers as groundup_workers
from groundup.errors import UserError


def square(number, folder=None, kill=None):
    """The worker that is first to work on `kill` dies of it; `folder` remembers that."""
    if number == kill:
        marker = folder / f"died-{len(list(folder.iterdir()))}"
        if not (folder / "died-0").exists() or folder.name == "always":
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number):
    raise UserError(f"no {number}")


def test_without_workers_the_work_is_done_here_and_only_when_asked_for():
    begun = []
    with groundup_workers.pool(1) as pool:
        assert pool.executor is None
        results = pool.spread(begun.append, [(1,), (2,)])
        next(results)
        assert begun == [1]


def test_results_are_in_the_order_of_the_jobs_and_few_jobs_wait():
    taken = []

    def jobs():
        for number in range(20):
            taken.append(number)
            yield (number,)

    with groundup_workers.pool(2) as pool:
        results = pool.spread(square, jobs())
        assert next(results) == 0
        assert len(taken) == groundup_workers.AHEAD * 2 + 1
        assert list(results) == [number * number for number in range(1, 20)]


def test_a_worker_that_is_killed_changes_nothing(tmp_path):
    with groundup_workers.pool(2) as pool:
        found = list(pool.spread(square, ((number, tmp_path, 3) for number in range(8))))
    assert found == [number * number for number in range(8)]
    assert (tmp_path / "died-0").exists()


def test_work_that_kills_every_worker_is_given_up(tmp_path):
    (tmp_path / "always").mkdir()
    with groundup_workers.pool(2) as pool, pytest.raises(UserError, match="a worker died 3 times"):
        list(pool.spread(square, ((number, tmp_path / "always", 0) for number in range(3))))


def test_what_the_work_raises_is_raised_here():
    with groundup_workers.pool(2) as pool, pytest.raises(UserError, match="no 7"):
        list(pool.spread(refuse, [(7,)]))


def test_workers_end_with_the_pool():
    with groundup_workers.pool(2) as pool:
        list(pool.spread(square, [(1,), (2,), (3,)]))
        workers = list(pool.executor._processes.values())
    deadline = time.monotonic() + 5
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(worker.is_alive() for worker in workers)
