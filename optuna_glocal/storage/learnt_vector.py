"""Where a vector of hyperparameters ended in a trial that tuned itself, bounded in size."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_glocal._arrays import FloatArray, IntArray
from optuna_glocal.storage.attributes import BROKEN, MOST_BYTES, TrialLike, get, put
from optuna_glocal.storage.keys import LEARNT, VERSION
from optuna_glocal.storage.vector import Vector

#: The quantiles that are kept of the path.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Most rows of the path that are kept.
MOST_ROWS = 200
# A file of float32. A larger vector is kept as so many quantiles.
_MOST_ENTRIES = MOST_BYTES // 4


@dataclass(frozen=True, eq=False)
class LearntVector:
    """What a trial has made of a vector of hyperparameters.

    Attributes:
        vector: Shape and range.
        values: Where the entries ended, shape ``vector.shape``. Of more than 11,520 entries
            only so many quantiles are kept, in rising order, as a flat array.
        steps: Optimizer steps done at each row of ``quantiles``.
        quantiles: Minimum, quartiles, median and maximum of all entries on the way, shape
            ``(n, 5)``.
    """

    vector: Vector
    values: FloatArray
    steps: IntArray
    quantiles: FloatArray

    @property
    def is_whole(self) -> bool:
        """Whether :attr:`values` are all entries at their places."""
        return self.values.shape == self.vector.shape

    def at_ends(self) -> tuple[int, int]:
        """How many of :attr:`values` ended at the lower and at the upper end of the range."""
        low, high = self.vector.low, self.vector.high
        near = 1e-4 * ((high / low - 1) * low if not self.vector.log else 0)
        factor = 1.001 if self.vector.log else 1.0
        below = self.values <= low * factor + near
        above = self.values >= high / factor - near
        return int(below.sum()), int(above.sum())

    def words(self) -> str:
        """Its entries in one line.

        Example:
            >>> values = np.array([1e-3, 0.1, 0.2, 0.3, 10.0])
            >>> LearntVector(Vector(5, 1e-3, 10.0), values, np.array([]), np.array([])).words()
            '5 entries from 0.001 to 10, middle half [0.1, 0.3], 1 lowest, 1 highest'
        """
        low, quarter, _, three, high = np.quantile(self.values, SHARES).tolist()
        below, above = self.at_ends()
        return (
            f"{self.vector.count} entries from {low:.3g} to {high:.3g}, middle half "
            f"[{quarter:.3g}, {three:.3g}], {below} lowest, {above} highest"
        )

    def write(self, trial: TrialLike, name: str) -> None:
        """Stores it as that of the vector ``name``."""
        values = self.values.ravel()
        if values.size > _MOST_ENTRIES:
            values = np.quantile(values, np.linspace(0, 1, _MOST_ENTRIES))
        rows = np.column_stack([self.steps, self.quantiles])
        about = {
            "v": VERSION,
            "vector": self.vector.to_json(),
            "values": _packed(values, "<f4"),
            "path": _packed(rows, "<f8"),
        }
        put(trial, LEARNT + name, json.dumps(about, separators=(",", ":")))

    @classmethod
    def read(cls, attrs: Mapping[str, Any], name: str) -> LearntVector | None:
        """What was stored for the vector ``name``; ``None`` if it is absent or damaged."""
        try:
            about = json.loads(get(attrs, LEARNT + name) or "")
            vector = Vector.from_json(about["vector"])
            if vector is None or about["v"] != VERSION:
                return None
            values = _unpacked(about["values"], "<f4")
            rows = _unpacked(about["path"], "<f8").reshape(-1, 1 + len(SHARES))
            if not np.isfinite(values).all() or not (np.abs(rows[:, 0]) < 2**53).all():
                return None
            if values.size == vector.count:
                values = values.reshape(vector.shape)
            elif values.size != _MOST_ENTRIES or vector.count < _MOST_ENTRIES:
                return None
            return cls(vector, values, rows[:, 0].astype(np.int64), rows[:, 1:])
        except BROKEN:
            return None


def learnt_vectors(attrs: Mapping[str, Any]) -> dict[str, LearntVector]:
    """All vectors that a trial has learnt, by name, from its user attributes."""
    names = [key[len(LEARNT) :] for key in attrs if key.startswith(LEARNT)]
    found = {name: LearntVector.read(attrs, name) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def _packed(values: FloatArray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def _unpacked(text: str, dtype: str) -> FloatArray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).astype(np.float64)
