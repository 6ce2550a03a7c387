"""Which rule belongs to which optimizer, and which optimizers are refused."""

import torch

from optuna_glocal.hypergradient.optimizers import refusal


def test_what_cannot_work_is_refused_with_a_sentence():
    p = [torch.zeros(2, requires_grad=True)]
    assert "inside its step" in refusal(torch.optim.LBFGS(p))
    assert "sparse" in refusal(torch.optim.SparseAdam(p))
    assert refusal(torch.optim.SGD(p)) is None
    if hasattr(torch.optim, "Muon"):
        ours = type("Ours", (torch.optim.Muon,), {})
        matrix = [torch.zeros(2, 2, requires_grad=True)]
        assert "bfloat16" in refusal(ours(matrix))
        assert refusal(torch.optim.Muon(matrix)) is None
