"""A few values of every weight, read in two microseconds where a norm of all takes forty.

And whether anybody else holds a weight's memory, who could write it without torch's counting it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import count_users, memory_of

# Values per tensor; one that has fewer is read whole.
_COUNT = 256


class WeightSample:
    """Values of each of many tensors at positions that stay the same.

    They are evenly spread over the memory of a tensor, at odd distances, so that they lie in
    different rows and columns of a matrix. They are read through views: once a tensor has other
    memory, they are the values that it had before.

    Args:
        tensors: Dense ones, on any devices.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._views: dict[torch.device, list[Tensor]] = {}
        for t in tensors:
            self._views.setdefault(t.device, []).append(_sample_of(t))
        # Kept alive by the views.
        self._memories = list(map(memory_of, tensors))
        on_cpu = [t.untyped_storage() for t in tensors if t.device.type == "cpu"]
        self._is_lent = any(storage.is_shared() for storage in on_cpu)
        # How many hold the memory of a tensor that has one view of ours and no other.
        other = torch.nn.Parameter(torch.empty(1))
        view = _sample_of(other)
        self._alone = count_users(memory_of(view))

    def read(self) -> list[Tensor]:
        """Copies of the values, a tensor for each device."""
        return [torch.cat(views) for views in self._views.values()]

    @property
    def is_shared(self) -> bool:
        """Whether anybody else holds memory of a tensor: another view, numpy, another process."""
        return self._is_lent or max(map(count_users, self._memories), default=0) > self._alone


def _sample_of(t: Tensor) -> Tensor:
    held = t.untyped_storage().nbytes() // t.element_size() - t.storage_offset()
    size = min(t.numel(), held)
    step = 1 if size <= _COUNT else -(-size // _COUNT) | 1
    return t.detach().as_strided((-(-size // step),), (step,))
