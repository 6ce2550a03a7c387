"""What an estimator returns: the hypergradient at the horizon, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from optuna_glocal._arrays import FloatArray

FEWEST = 3  # with fewer hypergradients there is no estimate
REACHED = 0.95  # from this share of the horizon on, values are measured, not forecast


class Status(str, Enum):
    """How the estimate was made, or why there is none; each value is a sentence for the user."""

    OK = "An estimate is given."
    TOO_SHORT = "Too few points were seen for a gradient."
    NOT_FINITE = "The newest loss or hypergradient is not finite: the run has diverged."
    NOT_INCREASING = "Steps are unsorted or repeated, so the order of the points is unknown."
    CONSTANT = "The hypergradients do not change, so they cannot be extrapolated."
    UNRELIABLE = "The hypergradients are too rough to be extrapolated."
    NO_HYPERPARAMETERS = "No hypergradient was measured."
    NO_MODE = "No Koopman mode was found or kept; the power law is used instead."
    NOT_REACHED = (
        "The run has not reached the horizon, and estimator='global' does not extrapolate."
    )


@dataclass(frozen=True)
class Estimate:
    """A hypergradient at the horizon, or the reason why there is none.

    Attributes:
        h: ĥ, shape ``(q,)``, in scaled units; ``None`` if there is none.
        sd: Standard deviations of ``h``.
        status: The reason.
        source: Name of the estimator, or ``"none"``.
        diagnostics: Plain numbers and lists.
    """

    h: FloatArray | None
    sd: FloatArray | None
    status: Status
    source: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def none(cls, status: Status, diagnostics: Mapping[str, Any] | None = None) -> Estimate:
        """An estimate without numbers."""
        return cls(None, None, status, "none", diagnostics or {})
