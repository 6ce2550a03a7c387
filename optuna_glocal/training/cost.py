"""What is spent: seconds of the clock to report, and counted arithmetic to decide by.

No decision here or elsewhere depends on a clock, so that equal trials leave equal records on any
machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import DispatchMode, flop_formula
from optuna_glocal.hypergradient.stateful import Stateful

# Seconds per kernel call, per flop and per byte written. They fit the measured table of
# examples/benchmarks/README.md ("Price of carrying tangents") to within a third, but for exact
# tangents of three and more hyperparameters of the CNN, which they make up to 2.4 times too dear.
_CALL, _FLOP, _BYTE = 8e-6, 1e-11, 2e-10
#: Forward and backward pass over the backward alone: the forward pass costs half of it.
STEP_PER_BACKWARD = 1.5


class Meter(Stateful):
    """Wall seconds of one trial, ours apart from the training's own. They are reported only."""

    _state = ("ours", "_plain_backward", "seconds")

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._plain_backward = float("inf")
        #: Seconds that the training would not have spent without us.
        self.ours = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the start, without those between the parts of a resumed run."""
        return time.perf_counter() - self._start

    @seconds.setter
    def seconds(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def our_time(self) -> _Ours:
        """Counts the block as ours."""
        return _Ours(self)

    @contextlib.contextmanager
    def plain_backward(self) -> Iterator[None]:
        """Times a plain backward, to subtract from the ones that we replace."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._plain_backward = min(self._plain_backward, time.perf_counter() - start)

    @contextlib.contextmanager
    def in_place_of_backward(self) -> Iterator[None]:
        """Counts the block as ours, less the plain backward that it replaces."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            plain = min(self._plain_backward, spent)
            self.ours += spent - plain


class _Ours:
    """Context manager of :meth:`Meter.our_time`: a generator would take three times as long."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._meter.ours += time.perf_counter() - self._start


class Counter(DispatchMode):  # type: ignore[no-untyped-call]
    """Counts the arithmetic of the block; it can be entered again and goes on counting.

    Attributes:
        calls: Kernel calls.
        flops: Of matrix products, convolutions and attention, by torch's own formulas.
        bytes: Of all results.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls, self.flops, self.bytes = 0, 0.0, 0

    @property
    def cost(self) -> float:
        """All of it in seconds of a nominal machine, the same wherever it is counted."""
        return _CALL * self.calls + _FLOP * self.flops + _BYTE * self.bytes

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside a block that counts: not counted, and run as if nobody counted."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "is_view", False):
            return out
        self.calls += 1
        count = flop_formula(func)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.bytes += t.numel() * t.element_size()
        return out


def step_cost(optimizer: torch.optim.Optimizer) -> float:
    """The cost of an optimizer's own step, which is not counted but estimated from its state."""
    cost = 0.0
    for group in optimizer.param_groups:
        for p in group["params"]:
            held = optimizer.state.get(p, {}).values()
            states = sum(isinstance(t, Tensor) and t.numel() > 1 for t in held)
            cost += _CALL * (2 + 3 * states) + _BYTE * (1 + states) * p.numel() * p.element_size()
    return cost
