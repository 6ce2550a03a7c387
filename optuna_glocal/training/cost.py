"""How much of the training loop's time is ours, and whether tangents are worth their cost.

Symbols: τ window, T horizon, q hyperparameters.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from optuna_glocal.hypergradient._torch import DispatchMode, flop_formula

# Cost of a whole trial, in plain trials, up to which a study with exact gradients was at least as
# good at equal compute: 2.2 for q = 3 and 4, 4.6 (uncertain) for q = 8 (reference/
# equal_compute.md, section 6).
_BREAK_EVEN, _BREAK_EVEN_PER_Q, _BREAK_EVEN_MOST = 2.2, 0.2, 3.0
_STEPS_TO_JUDGE = 8
# More, because the gaps between the products of cheap tangents widen over the first of these.
_STEPS_TO_JUDGE_AGAIN = 16


class Meter:
    """Wall seconds of one trial, ours apart from the training's own."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._plain_backward = float("inf")
        self._marks: list[tuple[float, float]] = []
        self._again: tuple[float, float] | None = None
        self._since = 0
        #: Seconds that the training would not have spent without us.
        self.ours = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

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

    def mark_step(self) -> None:
        """Called once per optimizer step while the first steps are judged."""
        self._since += 1
        if len(self._marks) <= _STEPS_TO_JUDGE:
            self._marks.append((time.perf_counter(), self.ours))

    def judge_again(self) -> None:
        """Judges the cost by its mean from now on, since it varies from step to step."""
        self._again, self._since = (time.perf_counter(), self.ours), 0

    def trial_ratio(self, window: int, horizon: int) -> float | None:
        """Expected cost of the whole trial over a plain one; ``None`` while too early.

        By the least of what was seen: on a busy machine any step can appear expensive.
        """
        if self._again is not None:
            if self._since < _STEPS_TO_JUDGE_AGAIN:
                return None
            ours = self.ours - self._again[1]
            plain = time.perf_counter() - self._again[0] - ours
            return 1 + ours / max(plain, 1e-9) * window / horizon
        if len(self._marks) <= _STEPS_TO_JUDGE:
            return None
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        extra = min(after[1] - before[1] for before, after in pairs)
        plain = min((b[0] - a[0]) - (b[1] - a[1]) for a, b in pairs)
        return 1 + extra / max(plain, 1e-9) * window / horizon


class _Ours:
    """Context manager of :meth:`Meter.our_time`: a generator would take three times as long."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._meter.ours += time.perf_counter() - self._start


def break_even(q: int) -> float:
    """Cost of a trial, in plain trials, above which its gradient is not worth carrying."""
    return min(_BREAK_EVEN + _BREAK_EVEN_PER_Q * max(0, q - 4), _BREAK_EVEN_MOST)


class Flops(DispatchMode):  # type: ignore[no-untyped-call]
    """Flops of matrix products, convolutions and attention, by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_formula(func)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out
