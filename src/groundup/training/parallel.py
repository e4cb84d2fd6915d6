"""Training on several processes: PyTorch's own DDP and FSDP2, started by `torchrun`; gloo between CPUs, NCCL between GPUs.

Every process computes its rows of the same big batch. The weights of one step's targets add up to one over all
processes, so gradients are *summed*, never averaged, and the order of data stays a function of the step at any number
of processes. With DDP (Li et al. 2020) each process holds the whole model; with FSDP2 (Zhao et al. 2023; `shard`) its
rows of every parameter, gradient and optimizer state, and whole matrices only while a block is computed.
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
TIMEOUT = timedelta(days=30)  # the first process may crawl and filter for long before it trains
_calls, _groups = count(), count()  # each gets its own keys in the store, which keeps old values


class Processes:
    """This process among `world`; the first alone prints and writes. Without torchrun it is alone, and nothing differs."""

    def __init__(self, rank: int = 0, world: int = 1, shard: bool = False) -> None:
        self.rank, self.world, self.shard = rank, world, shard and world > 1
        self.first = rank == 0
        self.threads = torch.get_num_threads()
        self._replica: DistributedDataParallel | None = None

    def spread(self, model: nn.Module, objective: Objective, device: torch.device) -> Objective:
        """Put `model` on `device`, only this process's rows where it is sharded; returns the objective to train it with.

        Call it before the optimizer is made: sharding replaces the parameters.
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

        parts: this process's rows of every matrix, all rows unless sharded. The results are split as `parts` are.
        """
        if self.world == 1:
            return list(work(torch.stack(parts)).unbind())
        import torch.distributed as dist

        count, (rows, columns) = len(parts), shape
        per_process = -(-count // self.world)  # matrices a process
        own_count = max(0, min(per_process, count - self.rank * per_process))
        if not self.shard:
            results = parts[0].new_zeros(per_process, rows, columns)
            if own_count:
                results[:own_count] = work(torch.stack(parts[self.rank * per_process : self.rank * per_process + own_count]))
            gathered = parts[0].new_empty(self.world * per_process, rows, columns)
            dist.all_gather(list(gathered.chunk(self.world)), results)
            return list(gathered[:count].unbind())
        shard_rows = -(-rows // self.world)  # of each matrix a process, the last ones fewer
        own_rows = parts[0].shape[0]
        sent = parts[0].new_zeros(self.world * per_process, shard_rows, columns)
        if own_rows:
            sent[:count, :own_rows] = torch.stack(parts)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)  # to the owner of each matrix, its rows from every process
        matrices = (
            received.view(self.world, per_process, shard_rows, columns).transpose(0, 1).reshape(per_process, -1, columns)
        )
        if own_count:
            matrices[:own_count, :rows] = work(matrices[:own_count, :rows])
        sent = matrices.view(per_process, self.world, shard_rows, columns).transpose(0, 1).contiguous()
        dist.all_to_all_single(received, sent.view_as(received))
        return list(received[:count, :own_rows].unbind())

    def mine(self, count: int) -> tuple[list[int], float]:
        """Indices of this process's rows among a step's `count`, and the weight of each: 1.

        A process without a row takes the first with weight 0: all must take part in the sum of the gradients.
        """
        indices = list(range(self.rank, count, self.world))
        return (indices, 1.0) if indices else ([0], 0.0)

    def rows(self, total: int) -> slice:
        """The rows of a sharded tensor that this process holds."""
        per_process = -(-total // self.world)
        return slice(min(self.rank * per_process, total), min((self.rank + 1) * per_process, total))

    def end(self) -> None:
        """Leave the process group, once all processes have finished."""
        if self.world > 1:
            import torch.distributed as dist

            self._replica = None
            dist.barrier()
            dist.destroy_process_group()
            torch.set_num_threads(self.threads)  # the steps of the pipeline after it use the whole machine


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
    # A prefix for each group: a second training would read the addresses of the first.
    store = dist.PrefixStore(f"groups/{next(_groups)}", _store())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.world)
    return processes


def call(work: str) -> None:
    """The first process tells the others which work to join; "": there is no more."""
    if world() > 1 and rank() == 0:
        _store().set(f"work/{next(_calls)}", work)


def called() -> str:
    """The next work that the first process calls for; waits for it."""
    store, name = _store(), f"work/{next(_calls)}"
    store.wait([name], TIMEOUT)
    return store.get(name).decode()


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor, a view; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, which all must call; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class _Step(nn.Module):
    """The objective as a forward: DDP and FSDP hook into `forward`, while objectives use the model's submodules."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: "Batch") -> tuple[Tensor, "Metrics"]:
        return self.objective(self.model, batch)


@cache
def _store() -> "Store":
    """The key-value store that torchrun keeps for its processes, also after it restarted them."""
    import torch.distributed as dist

    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"groundup/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
