"""Ray as an executor of `concurrent.futures`: a job is a task, and a task whose worker or node dies is run again.

As datatrove and DCLM use it: tasks of Ray's core, one per shard, and nothing of Ray Data. On one machine everything
listens on loopback only, and no usage statistics are sent.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from groundup.core.errors import UserError

ATTEMPTS = 3  # as of a worker process here
LOOPBACK = "127.0.0.1"
# Read when ray is imported, and by the processes that it starts.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Despite its name, this makes Ray use 127.0.0.1 as the address of this machine on Linux too.
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class RayExecutor(Executor):
    """Tasks on the cluster that this process is connected to."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.tasks: dict[Callable, Any] = {}  # a function is sent to the cluster once

    def submit(self, function: Callable, /, *arguments: Any, **named: Any) -> Future:
        import ray

        if function not in self.tasks:
            self.tasks[function] = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(function)
        outcome: Future = Future()

        def settle(task: Future) -> None:
            error = task.exception()
            if error is None:
                outcome.set_result(task.result())
            elif isinstance(error, ray.exceptions.RayTaskError):
                outcome.set_exception(error.cause)  # what the function raised, without Ray's words around it
            elif isinstance(error, ray.exceptions.RayError):
                reason = str(error).strip().split("\n")[0]
                outcome.set_exception(UserError(f"Ray gave up after {ATTEMPTS} attempts: {reason}"))
            else:
                outcome.set_exception(error)

        self.tasks[function].remote(*arguments, **named).future().add_done_callback(settle)
        return outcome


@contextmanager
def connected(address: str, workers: int) -> Iterator[RayExecutor]:
    """Connect to the cluster at `address`, or start one for `local`; `workers` tasks at once, 0 for one per core.

    Raises UserError when ray is not installed, or no cluster answers.
    """
    starts_cluster = address == "local"
    for name, value in (QUIET | ON_LOOPBACK if starts_cluster or address.startswith(LOOPBACK) else QUIET).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UserError("ray is not installed; pip install 'groundup[ray]'") from None
    options = {"num_cpus": workers or None, "include_dashboard": False} if starts_cluster else {}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
    except Exception as error:  # Ray raises plain exceptions too, such as when a node is not up in time
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"ray at {address}: no cluster answers ({reason}); `ray start` with head begins one") from None
    try:
        yield RayExecutor(workers or int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
