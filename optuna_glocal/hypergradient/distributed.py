"""Several processes that train one model together (DistributedDataParallel).

Each rank sees its own batches; DDP averages the gradients inside ``loss.backward()``, so the
tangents of the gradients are averaged after it. Collectives must be entered by all ranks or by
none: at every backward of the window the ranks first agree that each still carries tangents, and
a rank that has stopped says so once. That needs a callback on every rank, which is why the trial
must be a ``TorchDistributedTrial``; under any other trial nothing is ever communicated.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NOT_SHARED = (
    "The model is trained by several processes (DistributedDataParallel), each of which needs its "
    "own callback; pass a TorchDistributedTrial on every rank."
)


def is_shared(trial: Any) -> bool:
    """Whether all ranks hold this trial. By name: it is not in Optuna itself."""
    return any(cls.__name__ == "TorchDistributedTrial" for cls in type(trial).__mro__)


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


class _Collected:
    def __init__(self, number: int) -> None:
        self.number = number
        self.attrs: list[tuple[str, Any]] = []

    def set_user_attr(self, key: str, value: Any) -> None:
        self.attrs.append((key, value))


@contextlib.contextmanager
def written_alike(trial: Any) -> Iterator[Any]:
    """A stand-in for a shared trial, whose attributes are then set as rank 0 would set them.

    Any other trial is given as it is.

    ``TorchDistributedTrial.set_user_attr`` is itself a collective, and the ranks' own texts, which
    hold their own seconds, need not come in equally many pieces.
    """
    if not is_shared(trial):
        yield trial
        return
    collected = _Collected(trial.number)
    yield collected
    told = [collected.attrs]
    dist.broadcast_object_list(told, src=0)
    for key, value in told[0]:
        trial.set_user_attr(key, value)


def is_first(trial: Any) -> bool:
    """Whether this process speaks for the trial: of those that write alike, rank 0 does."""
    return not isinstance(trial, _Collected) or dist.get_rank() == 0
