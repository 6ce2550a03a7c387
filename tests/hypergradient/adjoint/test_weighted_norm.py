import pytest
import torch

from optuna_glocal.hypergradient.adjoint.weighted_norm import weighted_norm


def test_it_is_the_length_after_scaling_by_the_root_of_the_weights():
    w, r = torch.rand(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert weighted_norm(w, r) == pytest.approx(float((w.sqrt() * r).norm()))
    assert weighted_norm(torch.zeros(5), r) == 0.0
