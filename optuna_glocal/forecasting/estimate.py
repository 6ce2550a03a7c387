"""What an estimator of the hypergradient at the horizon returns: numbers, or why it has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from optuna_glocal._arrays import FloatArray

FEWEST = 3  # hypergradients under which nothing is said
REACHED = 0.95  # a run this near its horizon is measured, not forecast


class Status(str, Enum):
    """How the estimate was made, or why there is none: the value is the sentence for the user."""

    OK = "An estimate is given."
    TOO_SHORT = "Too few points were seen for a gradient."
    NOT_FINITE = "The newest loss or hypergradient is not finite: the run has diverged."
    NOT_INCREASING = "Steps are unsorted or repeated: the order of the points is not known."
    CONSTANT = "The hypergradients do not change: nothing was learnt from them."
    UNRELIABLE = "The hypergradients are too rough: their end cannot be told from here."
    NO_HYPERPARAMETERS = "No hypergradient was measured."
    NO_MODE = "No Koopman mode was found or qualifies: the local hypergradient is continued."
    NOT_REACHED = "The hypergradients do not reach the horizon, and only these were asked for."


@dataclass(frozen=True)
class Estimate:
    """ĥ and its standard deviation, shape ``(q,)``, or ``None``; why, and where from."""

    h: FloatArray | None
    sd: FloatArray | None
    status: Status
    source: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def none(cls, status: Status, diagnostics: Mapping[str, Any] | None = None) -> Estimate:
        """Nothing but the reason."""
        return cls(None, None, status, "none", diagnostics or {})
