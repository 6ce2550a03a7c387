"""The random states of torch (CPU and CUDA), numpy and python, kept and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomStates:
    """All random states as they are now.

    Example:
        >>> states = RandomStates()
        >>> first = torch.rand(2)
        >>> states.put_back()
        >>> torch.equal(first, torch.rand(2))
        True
    """

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state_all() if cuda_is_initialized() else None
        self._host = host_state()

    def put_back(self) -> None:
        """Makes them again what they were."""
        torch.default_generator.set_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        set_host_state(self._host)


def host_state() -> tuple[Any, Any]:
    """numpy's and python's."""
    return np.random.get_state(), random.getstate()


def plain_host_state(state: tuple[Any, Any]) -> tuple[Any, Any]:
    """What :func:`host_state` returned, as plain numbers, which :func:`set_host_state` takes."""
    name, keys, *rest = state[0]
    return (str(name), [int(key) for key in keys], *rest), state[1]


def set_host_state(state: tuple[Any, Any]) -> None:
    """Restores what :func:`host_state` returned."""
    np.random.set_state(state[0])
    random.setstate(state[1])


def cuda_is_initialized() -> bool:
    """Whether there are random states on GPUs; asking for them would start CUDA."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
