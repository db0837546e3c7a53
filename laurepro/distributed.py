"""Several processes as one: set-up from the environment that torchrun gives, sums, and batch normalisation.

With one process every function here is the identity, and nothing is set up.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import secrets
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laurepro import distributed
from laurepro.errors import LaureproError

TIMEOUT = datetime.timedelta(minutes=10)  # a rank that waits longer fails instead of hanging for ever
SHARED_SECONDS = 5.0  # for a file that one node wrote to appear on another


def initialise() -> None:
    """Join the group that RANK and WORLD_SIZE name: gloo for tensors on the CPU, nccl for those on a GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def leave() -> None:
    """Leave the group: its threads would abort the process if they still ran when Python ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, as a new tensor, outside of autograd. With one process, the tensor itself."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: the same answer on all ranks, and only after all have called."""
    if world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag))).item())


def from_rank_0(value: int) -> int:
    """Rank 0's value, on every rank."""
    return int(all_reduce_sum(torch.tensor(value if rank() == 0 else 0)).item())


def bytes_from_rank_0(value: bytes) -> bytes:
    """Rank 0's value, on every rank; it must have the same length on all."""
    if world_size() == 1:
        return value
    values = list(value if rank() == 0 else bytes(len(value)))
    return bytes(all_reduce_sum(torch.tensor(values)).tolist())


def ranks_with(flag: bool) -> list[int]:
    """The ranks on which the flag is set: the same answer on all ranks."""
    flags = torch.zeros(world_size(), dtype=torch.int64)
    flags[rank()] = int(flag)
    return torch.nonzero(all_reduce_sum(flags)).flatten().tolist()


def check_shared(folder: Path) -> None:
    """Check that all ranks see the same folder: rank 0 writes a token into it, which the others look for.

    Raises:
        LaureproError: on every rank alike, where one does not see it: nodes without a common folder would train on
            from different checkpoints, and evaluate different weights.
    """
    if world_size() == 1:
        return
    token = folder / f"shared-{bytes_from_rank_0(secrets.token_bytes(8)).hex()}"
    if rank() == 0:
        token.touch()
    any_rank(False)  # it is written
    blind = ranks_with(not _appears(token))
    if rank() == 0:
        token.unlink(missing_ok=True)
    if blind:
        raise LaureproError(
            f"--runs {folder.parent}: rank {', '.join(map(str, blind))} of {world_size()} has another folder there "
            "than rank 0, which wrote a file that it cannot see",
            "the nodes of a job need one --runs folder, on a disk that all of them mount",
        )


def _appears(file: Path) -> bool:
    """Whether a file is there within some seconds, for which a network file system may show an older listing."""
    end = time.monotonic() + SHARED_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if file.name in os.listdir(file.parent):
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


class _SumOverRanks(torch.autograd.Function):
    """A differentiable sum over ranks: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients[0])


class AllReducedBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all ranks, for the CPU, which torch's SyncBatchNorm does not support.

    Mean, centred variance and gradients are those of the whole batch, however unequally it is spread over the ranks.
    Input [N, C, ...]; parameters and buffers are named as in BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {input.dim()} dimension(s)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise per channel; in eval mode exactly as BatchNorm."""
        self._check_input_dim(input)
        if not self.training or world_size() == 1:
            return super().forward(input)
        given = input.dtype
        input = input.to(torch.promote_types(given, torch.float32))  # as SyncBatchNorm sums
        over = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        count = input.new_tensor([input.numel() // input.shape[1]])
        sums: Tensor = _SumOverRanks.apply(torch.cat([input.sum(over), count]))
        n = float(sums[-1].detach())
        mean = sums[:-1] / n
        centred = input - mean.view(shape)
        variance = _SumOverRanks.apply(centred.square().sum(over)) / n
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (n / max(n - 1, 1)))
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(given)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in the module by one with statistics over all ranks; names in `state_dict` stay.

    Call it when the module is on the device where it will run.

    Raises:
        LaureproError: a subclass of BatchNorm with a forward pass of its own, timm's BatchNormAct2d excepted.
    """
    if world_size() == 1:
        return module
    return _convert(module, nn.SyncBatchNorm if any(p.is_cuda for p in module.parameters()) else AllReducedBatchNorm)


def _convert(module: nn.Module, synchronised: type[nn.SyncBatchNorm | AllReducedBatchNorm]) -> nn.Module:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        kind = type(module)
        if kind.forward is not _BatchNorm.forward and kind.__name__ != "BatchNormAct2d":
            raise LaureproError(
                f"{kind.__module__}.{kind.__name__} has a forward pass of its own, "
                "and its statistics cannot be summed over several processes",
                "use torch's nn.BatchNorm2d, or one process",
            )
        new = synchronised(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        # The same parameters and buffers, not copies: an optimiser may already hold them.
        new._parameters, new._buffers = module._parameters, module._buffers
        for name, child in module.named_children():
            new.add_module(name, child)
        new.register_forward_hook(_dropout_and_activation)
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child, synchronised))
    return module


def _dropout_and_activation(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Run what timm's BatchNormAct2d, in EfficientNet, MobileNet and RegNet, has in itself after the normalisation."""
    for child in module.children():
        output = child(output)
    return output


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one, instead of returning its pages to the system.

    Steps of scale smoke take 0.85 of the time with it (docs/speed.md). Without glibc it has no effect.
    """
    trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # the largest value that glibc accepts
        mallopt(trim_threshold, 2**31 - 1)


def prepare(threads: int | None) -> torch.device:
    """Set the number of threads and deterministic arithmetic; returns the device of this process.

    Only the CPU is made deterministic: some CUDA kernels have no deterministic form. The thread count changes the
    order of sums, hence the bits, so it is part of the experiment where bits matter.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    device = distributed.device()
    if device.type == "cpu":
        _keep_freed_memory()
    # Not use_deterministic_algorithms, which also imports the compiler; that takes longer than everything else here.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    return device


def device_name(device: torch.device) -> str:
    """The device for the record: the GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
