"""Several processes that train one model together (DistributedDataParallel, DDP).

Each rank sees its own batches. DDP averages the gradients inside ``loss.backward()``, so their
tangents are averaged after it. A collective operation must be entered by all ranks or by none, so
at every backward of the window the ranks first agree that each still carries tangents, and a rank
that has stopped says so once. This needs a callback on every rank, hence a
``TorchDistributedTrial``; under any other trial nothing is communicated.
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
        module: The DDP-wrapped module.
    """

    def __init__(self, module: Any) -> None:
        self._group = module.process_group
        self._device = next(module.parameters()).device

    def all_agree(self, still: bool) -> bool:
        """Whether ``still`` is true on every rank."""
        flag = torch.tensor(float(not still), device=self._device)
        dist.all_reduce(flag, group=self._group)
        return flag.item() == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the ranks, in place."""
        size = dist.get_world_size(self._group)
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group)
            tensor /= size


def ranks_of(params: Sequence[Tensor]) -> Ranks | None:
    """The processes that share ``params`` through DDP; ``None`` outside of distributed training.

    A parameter has no reference to its DDP module, so this searches all objects that Python's
    garbage collector tracks.
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
