"""One vector of hyperparameters of one run: the tensor, where it stands and what moves it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optuna_glocal._arrays import FloatArray
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.storage.learnt_vector import MOST_ROWS, SHARES, LearntVector
from optuna_glocal.storage.vector import Vector
from optuna_glocal.tuning.gated_means import GatedMeans
from optuna_glocal.tuning.vector_coordinate import VectorCoordinate

# Standard errors below which the mean of an entry's hypergradients moves nothing.
_GATE = 1.0


class MovingVector(Stateful):
    """A vector of hyperparameters of the training loss.

    Args:
        name: Its name.
        vector: Its range.
        start: Where it starts, of the vector's shape.
        like: A parameter of the model, whose dtype and device the tensor has.
        horizon: T, optimizer steps of the run.
    """

    _state = (
        "leaf", "_u", "_most", "_least", "_kept", "_means", "_stride", "_rows", "path",
    )  # fmt: skip

    def __init__(
        self, name: str, vector: Vector, start: FloatArray, like: Tensor, horizon: int
    ) -> None:
        self.name, self.vector = name, vector
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        #: What the training loss uses.
        self.leaf = torch.tensor(start, dtype=dtype, device=like.device, requires_grad=True)
        self._coordinate = VectorCoordinate(vector, float(start.mean()))
        self._u = self._coordinate.to_u(self.leaf.detach())
        # What a run that has gone back must not pass again.
        self._most = torch.full_like(self._u, torch.inf)
        self._least = torch.full_like(self._u, -torch.inf)
        self._kept = self._u.clone()
        self._means = GatedMeans(_GATE)
        self._stride = max(1, horizon // MOST_ROWS)
        self._rows: list[tuple[int, list[float]]] = []
        self._names = vector.names(name)
        #: (steps done, values by name), of the study's parameters of this vector.
        self.path: list[tuple[int, dict[str, float]]] = [(0, self.scalars())]
        self._note(0)

    def scalars(self) -> dict[str, float]:
        """The study's parameters of this vector: every entry, or the mean of all.

        The mean is the geometric one on a logarithmic scale.
        """
        if self.vector.is_separate:
            values = self.leaf.detach().flatten().tolist()
        elif self.vector.log:
            values = [self.leaf.detach().log().mean().exp().item()]
        else:
            values = [self.leaf.detach().mean().item()]
        low, high = self.vector.low, self.vector.high
        return {n: min(max(v, low), high) for n, v in zip(self._names, values, strict=True)}

    @torch.no_grad()
    def move(self, h: Tensor, step: float, steps: int) -> None:
        """One move by dL/dλ, after so many optimizer steps; ``step`` is its size in u."""
        by = -step * self._means.take(self._coordinate.gradient(h, self.leaf))
        if self.vector.smoothing:
            by -= step * self.vector.smoothing * (self._u - self._u.mean())
        self._u = self._coordinate.moved(self._u, by).clamp(self._least, self._most)
        self.leaf.copy_(self._coordinate.to_value(self._u))
        if steps >= self.path[-1][0] + (1 if self.vector.is_separate else self._stride):
            self.path.append((steps, self.scalars()))
        if steps >= self._rows[-1][0] + self._stride:
            self._note(steps)

    def keep(self) -> None:
        """Remembers where it stands, for :meth:`go_back`."""
        self._kept = self._u.clone()

    @torch.no_grad()
    def go_back(self, steps: int) -> None:
        """Back to where it was kept; from here on, no entry goes further than half the way again.

        Args:
            steps: Optimizer steps done.
        """
        half = (self._kept + self._u) / 2
        self._most = half.where(self._u > self._kept, torch.inf).minimum(self._most)
        self._least = half.where(self._u < self._kept, -torch.inf).maximum(self._least)
        self._means.forget()
        self._u = self._kept.clone()
        self.leaf.copy_(self._coordinate.to_value(self._u))
        self.path.append((steps, self.scalars()))

    def forget(self) -> None:
        """Forgets the hypergradients seen, after the run went back."""
        self._means.forget()

    def _note(self, steps: int) -> None:
        if len(self._rows) >= 2 * MOST_ROWS:  # a run beyond its horizon
            self._rows, self._stride = self._rows[::2], 2 * self._stride
        self._rows.append((steps, np.quantile(self.values(), SHARES).tolist()))

    def values(self) -> FloatArray:
        """The entries as they stand."""
        return np.asarray(self.leaf.detach().cpu().numpy(), np.float64)

    def learnt(self, steps: int) -> LearntVector:
        """What became of it after so many steps."""
        last = (steps, np.quantile(self.values(), SHARES).tolist())
        rows = [row for row in self._rows if row[0] < steps] + [last]
        if len(rows) > MOST_ROWS:
            keep = np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(int)
            rows = [rows[i] for i in keep]
        at, quantiles = zip(*rows, strict=True)
        return LearntVector(
            self.vector, self.values(), np.array(at, np.int64), np.array(quantiles, np.float64)
        )
