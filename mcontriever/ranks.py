"""Who am I among the ranks, and what do the others hold: the only file that imports torch.distributed.

Sample order: in a step over W ranks, rank r holds samples r, r+W, r+2W … of the batch, so that any W sees the same
batches. Letters: W ranks, B rows a rank, D dimensions.
"""

from __future__ import annotations

import datetime
import os
import socket
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import McontrieverError, UsageError
from .progress import note

T = TypeVar("T")


def started() -> bool:
    """Whether this process belongs to a started group; alone it behaves as rank 0 of 1."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if started() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if started() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def say(line: str) -> None:
    """One line to standard error, from rank 0."""
    if is_main():
        note(line)


def local_rank() -> int:
    """This process's number on its machine, from the launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Processes on this machine. torchrun sets LOCAL_WORLD_SIZE, the deepspeed launcher LOCAL_SIZE."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")


def prepare_environment() -> None:
    """Fill in what a launcher would have set, so that a process started by hand is a group of one (no MPI is asked)."""
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


def device() -> torch.device:
    """The device of this rank; on CPU the threads are shared out too, since the deepspeed launcher does not."""
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise UsageError(
                f"{local_world_size()} ranks on this machine, which has {torch.cuda.device_count()} GPUs; "
                "start at most one rank a GPU"
            )
        torch.cuda.set_device(local_rank())
        return torch.device("cuda", torch.cuda.current_device())
    # torchrun sets one thread unless told; the deepspeed launcher tells nobody anything
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if "OMP_NUM_THREADS" not in os.environ or by_torchrun:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))
    return torch.device("cpu")


def start(*, alone_too: bool = False, timeout_seconds: float = 1800) -> None:
    """Join the group the launcher describes. A lone process needs none, unless `alone_too` asks for a group of one."""
    if started() or (int(os.environ.get("WORLD_SIZE", "1")) == 1 and not alone_too):
        return
    # torch renames its collectives from release to release and says so at every call, DeepSpeed's calls included
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))


def stop() -> None:
    """Leave the group, so that the processes end without a warning."""
    if started():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all."""
    if started():
        dist.barrier()


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank: decisions (which checkpoint, when to stop) are taken once and told."""
    if not started():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable[[], T]) -> T:
    """Rank 0's result of `function`, on every rank; and where it fails, an error on every rank.

    Without this the others would wait for a rank 0 that has given up, or die of its silence with a traceback.
    """
    result, problem, told = None, None, None
    if is_main():
        try:
            result = function()
        except Exception as error:
            problem, told = error, f"rank 0: {error}"
    result, told = from_main((result, told))
    if problem is not None:
        raise problem
    if told is not None:
        raise McontrieverError(told)
    return result  # type: ignore[no-any-return]


def sum_(tensor: Tensor) -> Tensor:
    """The tensor, replaced by its sum over all ranks."""
    if started():
        dist.all_reduce(tensor)
    return tensor


def sum_over_ranks(values: Iterable[float], device: torch.device) -> list[float]:
    """Element-wise sums of a few numbers over all ranks."""
    total = sum_(torch.tensor(list(values), dtype=torch.float64, device=device))
    return [float(value) for value in total]


def average_(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in one message: plain data-parallel gradients."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def gather(rows: Tensor) -> Tensor:
    """All ranks' rows, rank after rank, without gradient: (B, ...) to (W*B, ...). Every rank holds the same B."""
    rows = rows.detach()
    if world_size() == 1:
        return rows
    everyone = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone


def in_sample_order(gathered: Tensor) -> Tensor:
    """Rank-after-rank rows to the order of the samples: row j of rank r is sample j*W + r."""
    width = world_size()
    return gathered.view(width, -1, *gathered.shape[1:]).transpose(0, 1).reshape(gathered.shape)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`, and differentiable: averaging the ranks' gradients then gives exactly the single-process gradient.

    Row b of rank r takes part in every rank's loss, so its gradient is the sum over the ranks of what each computed.
    """
    return _Gather.apply(rows) if world_size() > 1 else rows  # type: ignore[no-any-return,no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
