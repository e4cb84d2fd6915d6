"""More than one process: PyTorch's own DDP and FSDP2, started by `torchrun`; gloo between processors, NCCL between GPUs.

Every process computes its rows of the same big batch. The weights of one step's targets add up to one over all
processes, so gradients are *summed*, never averaged, and the order of data stays a function of the step at any number
of processes. With DDP (Li et al. 2020) each process holds the whole model; with FSDP2 (Zhao et al. 2023; `shard`) its
rows of every parameter, gradient and optimizer state, and whole matrices only while a block is at work.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import Store
    from torch.nn.parallel import DistributedDataParallel

    from groundup.training.objectives import Batch, Metrics

Objective = Callable[[nn.Module, "Batch"], tuple[Tensor, "Metrics"]]
PATIENCE = timedelta(days=30)  # the first process may crawl and filter for long before it trains
_calls, _groups = count(), count()  # each gets keys of its own in the store, which keeps what stood in it


class Processes:
    """This process among `world`; the first alone prints and writes. Without torchrun it is alone, and nothing differs."""

    def __init__(self, rank: int = 0, world: int = 1, shard: bool = False) -> None:
        self.rank, self.world, self.shard = rank, world, shard and world > 1
        self.first = rank == 0
        self.threads = torch.get_num_threads()
        self._replica: DistributedDataParallel | None = None

    def spread(self, model: nn.Module, objective: Objective, device: torch.device) -> Objective:
        """Put `model` on `device`, its rows only where it is sharded; the objective to train it with from now on.

        Before the optimizer is made: sharding replaces the parameters.
        """
        if self.world == 1:
            model.to(device)
            return objective
        step = _Step(model, objective)
        if self.shard:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (self.world,))
            for module in (*getattr(model.model, "layers", ()), step):
                fully_shard(module, mesh=mesh)
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other sum that is not divided
            return lambda _, batch: step(batch)
        from torch.nn.parallel import DistributedDataParallel

        model.to(device)
        self._replica = replica = DistributedDataParallel(step, gradient_as_bucket_view=True)
        return lambda _, batch: replica(batch)

    def accumulating(self, more: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch; where `more` follow, replicas wait for the last before they sum their gradients."""
        return self._replica.no_sync() if self._replica and more else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss summed over all processes."""
        if self._replica:
            loss = loss * self.world  # DDP divides by it
        loss.backward()

    def sum(self, values: list[float]) -> list[float]:
        """Each value added up over all processes; all of them get the same bits."""
        if self.world == 1:
            return values
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def share_out(self, work: Callable[[Tensor], Tensor], parts: list[Tensor], shape: torch.Size) -> list[Tensor]:
        """`work` on the stack (n, rows, columns) of whole matrices of `shape`, each on one process only.

        parts: this process's rows of every matrix, all rows unless sharded; so are the results.
        """
        if self.world == 1:
            return list(work(torch.stack(parts)).unbind())
        import torch.distributed as dist

        count, (rows, columns) = len(parts), shape
        each = -(-count // self.world)  # matrices a process
        mine = max(0, min(each, count - self.rank * each))
        if not self.shard:
            done = parts[0].new_zeros(each, rows, columns)
            if mine:
                done[:mine] = work(torch.stack(parts[self.rank * each : self.rank * each + mine]))
            everyone = parts[0].new_empty(self.world * each, rows, columns)
            dist.all_gather(list(everyone.chunk(self.world)), done)
            return list(everyone[:count].unbind())
        height = -(-rows // self.world)  # rows a process, the last ones fewer
        held = parts[0].shape[0]
        sent = parts[0].new_zeros(self.world * each, height, columns)
        if held:
            sent[:count, :held] = torch.stack(parts)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)  # to the owner of each matrix, its rows from every process
        whole = received.view(self.world, each, height, columns).transpose(0, 1).reshape(each, -1, columns)
        if mine:
            whole[:mine, :rows] = work(whole[:mine, :rows])
        sent = whole.view(each, self.world, height, columns).transpose(0, 1).contiguous()
        dist.all_to_all_single(received, sent.view_as(received))
        return list(received[:count, :held].unbind())

    def mine(self, count: int) -> tuple[list[int], float]:
        """Which of a step's `count` rows are this process's, and what they count: 1.

        One that is left without a row takes the first, which counts 0: all must come to the sum of the gradients.
        """
        numbers = list(range(self.rank, count, self.world))
        return (numbers, 1.0) if numbers else ([0], 0.0)

    def rows(self, total: int) -> slice:
        """Which of a sharded tensor's rows this process holds."""
        each = -(-total // self.world)
        return slice(min(self.rank * each, total), min((self.rank + 1) * each, total))

    def end(self) -> None:
        """Part, once all have come to the end."""
        if self.world > 1:
            import torch.distributed as dist

            self._replica = None
            dist.barrier()
            dist.destroy_process_group()
            torch.set_num_threads(self.threads)  # the steps after it have the machine for themselves


ALONE = Processes()


def rank() -> int:
    """This process's number among torchrun's, 0 without it."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def start(shard: bool) -> Processes:
    """Join the processes that torchrun started; alone without it. They share the machine's threads."""
    if world() == 1:
        return ALONE
    import torch.distributed as dist

    processes = Processes(rank(), world(), shard)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, processes.threads // local))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Keys of its own: a second training would meet the addresses of the first.
    store = dist.PrefixStore(f"groups/{next(_groups)}", _store())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.world)
    return processes


def call(work: str) -> None:
    """The first process tells the others what to take part in; "" when there is nothing more."""
    if world() > 1 and rank() == 0:
        _store().set(f"work/{next(_calls)}", work)


def called() -> str:
    """What the first process calls for next; waits until it does."""
    store, name = _store(), f"work/{next(_calls)}"
    store.wait([name], PATIENCE)
    return store.get(name).decode()


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor, which later changes go to; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all processes must ask for; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class _Step(nn.Module):
    """The objective as a forward: DDP and FSDP act around that, while objectives reach into the model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: "Batch") -> tuple[Tensor, "Metrics"]:
        return self.objective(self.model, batch)


@cache
def _store() -> "Store":
    """The key-value store that torchrun keeps for its processes, also those that it started again."""
    import torch.distributed as dist

    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"groundup/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
