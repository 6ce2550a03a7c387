"""What was measured in one training run: steps, validation losses, local hypergradients.

Symbols: m points seen, q hyperparameters λ, t step, L_t validation loss, h_t = dL(θ_t)/dλ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Local hypergradients of one run, in the order they were seen.

    Non-finite entries are data, not errors: a row of NaN in ``hypergradients`` says that only the
    loss was measured at that step.

    Args:
        steps: Optimizer steps done when each point was taken, shape ``(m,)``.
        losses: Validation losses L_t, shape ``(m,)``.
        hypergradients: h_t = dL(θ_t)/dλ in the user's units, shape ``(m, q)``.
        names: The q hyperparameters' names.
        scales: Shape ``(q,)``; how far one unit of the search space moves each hyperparameter
            (λ for log-scaled ones, the range's width else). Only used to compare coordinates
            with each other. Default: ones.

    Raises:
        ValueError: If the shapes do not fit each other or a step is no number.

    Example:
        >>> t = Trajectory([1, 2], [0.9, 0.8], [[-1.0], [-0.5]], ["lr"])
        >>> len(t), t.q
        (2, 1)
    """

    steps: IntArray
    losses: FloatArray
    hypergradients: FloatArray
    names: tuple[str, ...]
    scales: FloatArray = field(default_factory=lambda: np.ones(0))

    def __init__(
        self,
        steps: npt.ArrayLike,
        losses: npt.ArrayLike,
        hypergradients: npt.ArrayLike,
        names: Sequence[str],
        scales: npt.ArrayLike | None = None,
    ) -> None:
        names = (names,) if isinstance(names, str) else tuple(names)
        q = len(names)
        fields = {
            "steps": _whole(steps),
            "losses": np.asarray(losses, dtype=np.float64),
            "hypergradients": np.asarray(hypergradients, dtype=np.float64),
            "scales": np.ones(q) if scales is None else np.asarray(scales, dtype=np.float64),
        }
        m = fields["steps"].size
        if fields["hypergradients"].size == m * q:
            fields["hypergradients"] = fields["hypergradients"].reshape(m, q)
        expected = {"steps": (m,), "losses": (m,), "hypergradients": (m, q), "scales": (q,)}
        for name, shape in expected.items():
            if fields[name].shape != shape:
                raise ValueError(
                    f"{name}: expected shape {shape} for {m} steps and {q} names, got "
                    f"{fields[name].shape}. Give one row per step and one column per name."
                )
        for name, array in fields.items():
            object.__setattr__(self, name, array)
        object.__setattr__(self, "names", names)

    def __eq__(self, other: object) -> bool:
        """Whether all entries are equal; NaN equals NaN."""
        if not isinstance(other, Trajectory):
            return NotImplemented
        return (
            self.names == other.names
            and np.array_equal(self.steps, other.steps)
            and np.array_equal(self.losses, other.losses, equal_nan=True)
            and np.array_equal(self.hypergradients, other.hypergradients, equal_nan=True)
            and np.array_equal(self.scales, other.scales, equal_nan=True)
        )

    def __hash__(self) -> int:
        return hash((self.names, len(self)))

    def __len__(self) -> int:
        return int(self.steps.size)

    @property
    def q(self) -> int:
        """Number of hyperparameters."""
        return len(self.names)

    def thinned(self, most: int) -> Trajectory:
        """At most ``most`` points, evenly spread, the first and the last among them."""
        if len(self) <= most:
            return self
        keep = np.unique(np.linspace(0, len(self) - 1, most).round().astype(np.int64))
        return Trajectory(
            self.steps[keep],
            self.losses[keep],
            self.hypergradients[keep],
            self.names,
            self.scales,
        )


def _whole(steps: npt.ArrayLike) -> IntArray:
    given = np.asarray(steps)
    if given.dtype.kind == "f" and not (np.abs(given) < 2**53).all():
        raise ValueError(f"steps: expected whole numbers, got {given}. Count optimizer steps.")
    return given.astype(np.int64)


class TrajectoryBuilder:
    """Grows a trajectory within bounded memory: when full, every second point is dropped.

    Args:
        names: The hyperparameters' names.
        scales: See :class:`Trajectory`.
        capacity: Most points kept.
    """

    def __init__(
        self, names: Sequence[str], scales: npt.ArrayLike | None = None, capacity: int = 1024
    ) -> None:
        #: The hyperparameters' names.
        self.names, self._scales, self._capacity = tuple(names), scales, capacity
        self._missing: FloatArray = np.full(len(self.names), np.nan)
        self._rows: list[tuple[int, float, FloatArray]] = []
        self._replaced: tuple[int, float, FloatArray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, step: int, loss: float, hypergradient: npt.ArrayLike | None) -> None:
        """Adds one point; ``None`` for a hypergradient that was not measured."""
        self._rows.append((step, loss, self._row(hypergradient)))
        self._replaced = None
        if len(self._rows) > self._capacity:
            del self._rows[1:-1:2]

    def replace(self, loss: float, hypergradient: npt.ArrayLike | None) -> None:
        """Puts other values in the place of the newest point's."""
        self._replaced = self._rows[-1]
        self._rows[-1] = self._replaced[0], loss, self._row(hypergradient)

    def take_back(self, since: int) -> None:
        """Removes the hypergradients of the points at this step and later."""
        self._rows = [
            (step, loss, h if step < since else self._missing) for step, loss, h in self._rows
        ]

    def put_back(self) -> None:
        """The newest point is what it was before :meth:`replace`."""
        if self._replaced is not None:
            self._rows[-1], self._replaced = self._replaced, None

    def _row(self, hypergradient: npt.ArrayLike | None) -> FloatArray:
        if hypergradient is None:
            return self._missing
        return np.asarray(hypergradient, float).reshape(self._missing.shape)

    def state_dict(self) -> list[tuple[int, float, list[float]]]:
        """The rows so far, as plain numbers."""
        return [(step, loss, h.tolist()) for step, loss, h in self._rows]

    def load_state_dict(self, state: Sequence[tuple[int, float, Sequence[float]]]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._rows = [(step, loss, np.array(h, float)) for step, loss, h in state]

    def build(self) -> Trajectory:
        """The points so far."""
        q = len(self.names)
        steps = [row[0] for row in self._rows]
        losses = [row[1] for row in self._rows]
        h = np.array([row[2] for row in self._rows]).reshape(len(steps), q)
        return Trajectory(steps, losses, h, self.names, self._scales)
