"""Eigenvalues of the operator fitted to one run."""

import numpy as np
import pytest
from studies import trajectory

from optuna_glocal import Trajectory
from optuna_glocal import visualization as v


def test_eigenvalues_are_those_of_the_fit_and_the_policy_splits_them():
    t = np.arange(60)
    h = np.stack([0.9**t, 0.7**t], axis=1)
    figure = v.plot_eigenvalues(Trajectory(t + 1, 1 + 0.9**t, h, ["a", "b"]), 1000, "unit")
    kept, discarded = (next(x for x in figure.data if x.name.startswith(w)) for w in ("kept", "d"))
    found = np.sort([*kept.x, *discarded.x])
    # By block means the grid may be coarser than a step: a whole power of the rates.
    powers = (np.array([0.9, 0.7])[:, None] ** np.arange(1, 5)).ravel()
    assert np.isclose(found[:, None], powers, atol=1e-6).any()
    assert all(abs(x - 1) <= 0.02 for x in kept.x) and all(abs(x - 1) > 0.02 for x in discarded.x)
    with pytest.raises(ValueError, match="policy"):
        v.plot_eigenvalues(trajectory(), policy="none of these")
