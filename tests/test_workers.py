import os
import signal
import subprocess
import sys
import time

import pytest

from groundup.core import executor as groundup_workers
from groundup.core.errors import UserError


def square(number, folder=None, kill=None):
    """The worker that is first to work on `kill` dies of it; `folder` remembers that."""
    if number == kill:
        marker = folder / f"died-{len(list(folder.iterdir()))}"
        if not (folder / "died-0").exists() or folder.name == "always":
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def slow_square(number, seconds):
    time.sleep(seconds)
    return number * number


def where(seconds, sent=False):
    time.sleep(seconds)
    return os.getpid(), sent


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
        for number in range(200):
            taken.append(number)
            yield (number, 0.2 if number == 0 else 0)

    with groundup_workers.pool(2) as pool:
        results = pool.spread(slow_square, jobs())
        assert next(results) == 0
        assert len(taken) <= groundup_workers.HELD + 2
        assert list(results) == [number * number for number in range(1, 200)]


def test_this_process_is_one_of_the_workers_and_does_the_last_job():
    with groundup_workers.pool(2) as pool:
        found = [process for process, _ in pool.spread(where, [(0.05,)] * 40)]
    assert len(set(found)) == 2
    assert found[0] != os.getpid() == found[-1]
    assert found.count(os.getpid()) > groundup_workers.AHEAD


def test_only_what_goes_to_another_process_is_sent():
    with groundup_workers.pool(2) as pool:
        found = set(pool.spread(where, [(0.01,)] * 100, lambda job: (*job, True)))
    assert len(found) == 2
    assert all((process != os.getpid()) == sent for process, sent in found)


def test_a_worker_that_is_killed_changes_nothing(tmp_path):
    with groundup_workers.pool(2) as pool:
        found = list(pool.spread(square, ((number, tmp_path, 0) for number in range(8))))
    assert found == [number * number for number in range(8)]
    assert (tmp_path / "died-0").exists()


def test_work_that_kills_every_worker_is_given_up(tmp_path):
    (tmp_path / "always").mkdir()
    with groundup_workers.pool(2) as pool, pytest.raises(UserError, match="a worker died 3 times"):
        list(pool.spread(square, ((number, tmp_path / "always", 0) for number in range(3))))


def test_what_the_work_raises_is_raised_here():
    with groundup_workers.pool(2) as pool, pytest.raises(UserError, match="no 7"):
        list(pool.spread(refuse, [(7,), (8,), (9,)]))


def test_workers_end_with_the_pool():
    with groundup_workers.pool(2) as pool:
        list(pool.spread(square, [(1,), (2,), (3,)]))
        workers = list(pool.executor._processes.values())
    deadline = time.monotonic() + 60
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(worker.is_alive() for worker in workers)


def test_a_plain_script_is_not_run_again_by_its_helpers(tmp_path):
    """Without `if __name__ == "__main__"`, as people write scripts, and as the page on Python does."""
    script = tmp_path / "script.py"
    script.write_text("""
import os
from groundup.core.executor import pool
print("script")
with pool(2) as started:
    print(started.executor.submit(os.getppid).result() == os.getpid())
""")
    outcome = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (outcome.stdout.split(), outcome.stderr) == (["script", "True"], "")
