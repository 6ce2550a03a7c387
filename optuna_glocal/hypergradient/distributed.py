"""Several processes that train one model together (DistributedDataParallel).

Each rank sees its own batches; DDP averages the gradients inside ``loss.backward()``, so the
tangents of the gradients are averaged after it. Collectives must be entered by all ranks or by
none: at every backward of the window the ranks first agree that each still carries tangents, and
a rank that has stopped says so once. That needs a callback on every rank, which is why the trial
must be a ``TorchDistributedTrial``; under any other trial nothing is ever communicated.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NOT_SHARED = (
    "The model is trained by several processes (DistributedDataParallel), each of which needs its "
    "own callback; pass a TorchDistributedTrial on every rank."
)


class Ranks:
    """The processes behind one DistributedDataParallel module.

    Args:
        module: It.
    """

    def __init__(self, module: Any) -> None:
        self._group = module.process_group
        self._device = next(module.parameters()).device

    def all_agree(self, still: bool) -> bool:
        """Whether ``still`` holds on every rank."""
        flag = torch.tensor(float(not still), device=self._device)
        dist.all_reduce(flag, group=self._group)
        return flag.item() == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Mean over ranks, in place."""
        size = dist.get_world_size(self._group)
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group)
            tensor /= size


def ranks_of(params: Sequence[Tensor]) -> Ranks | None:
    """The DistributedDataParallel module that holds ``params``; looked for only where one may be.

    Nothing on a parameter leads to it, so Python's collector is asked.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    ours = {id(p) for p in params}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.parallel.DistributedDataParallel) and any(
            id(p) in ours for p in thing.parameters()
        ):
            return Ranks(thing)
    return None
