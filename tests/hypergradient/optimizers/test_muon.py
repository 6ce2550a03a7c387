"""The rule of ``torch.optim.Muon``."""

import oracles
import pytest
import torch
from step_laws import check_matrix_step

CASES = {
    "muon": {"lr": 0.05},
    "muon plain": {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", CASES)
def test_tangents_are_the_derivative_of_the_real_step(name, steps, monkeypatch):
    # In bfloat16 there is nothing to take differences of.
    monkeypatch.setattr("optuna_glocal.hypergradient.optimizers.muon._ARITHMETIC", torch.float64)
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", oracles.orthogonal)
    check_matrix_step(torch.optim.Muon, CASES[name], [(4, 3), (3, 5)], steps)
