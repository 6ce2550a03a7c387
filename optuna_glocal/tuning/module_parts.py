"""What an average of a model's weights needs of its modules besides their parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from optuna_glocal.hypergradient.invisible.random_states import RandomStates


@contextlib.contextmanager
def flags_of(modules: Sequence[nn.Module]) -> Iterator[None]:
    """On leaving, every module is in training or evaluation mode as before."""
    flags = [(inner, inner.training) for module in modules for inner in module.modules()]
    try:
        yield
    finally:
        for inner, training in flags:
            inner.training = training


def recompute_statistics(modules: Sequence[nn.Module], batches: Sequence[Any]) -> None:
    """Batch-norm statistics of the weights as they are, in the modules' own buffers.

    Nothing else remains: no training flags, counters of batches or random numbers drawn.

    Args:
        modules: Those whose statistics they are.
        batches: Of inputs, as ``torch.optim.swa_utils.update_bn`` takes them.
    """
    states = RandomStates()
    counters = [b for m in modules for b in m.buffers() if not b.is_floating_point()]
    held = [counter.clone() for counter in counters]
    with flags_of(modules):
        for module in modules:
            swa_utils.update_bn(batches, module)
    for counter, before in zip(counters, held, strict=True):
        counter.copy_(before)
    states.put_back()


def holding(params: Sequence[Tensor], modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules that hold any of ``params``, outermost ones only."""
    ours = {id(p) for p in params}
    found = [m for m in modules if any(id(p) in ours for p in m.parameters())]
    inner = {id(n) for m in found for n in m.modules() if n is not m}
    return [m for m in dict.fromkeys(found) if id(m) not in inner]


def statistics(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Floating-point buffers, without masks and the like, which hold infinities."""
    return [
        b
        for module in modules
        for b in module.buffers()
        if b.is_floating_point() and bool(torch.isfinite(b).all())
    ]
