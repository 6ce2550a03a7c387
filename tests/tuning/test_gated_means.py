"""Each entry has the gated mean that it would have alone."""

import pytest
import torch

from optuna_glocal.tuning.gated_mean import GatedMean
from optuna_glocal.tuning.gated_means import GatedMeans


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_it_is_the_gated_mean_of_every_entry(gate):
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = rows * torch.tensor([1.0, 1e-6, 3.0, 0.0], dtype=torch.float64) + torch.tensor(
        [0.0, 1e-6, -4.0, 0.0], dtype=torch.float64
    )
    means, alone = GatedMeans(gate), [GatedMean(gate) for _ in range(4)]
    for row in rows:
        x = means.take(row)
        expected = [one.take(h) for one, h in zip(alone, row.tolist(), strict=True)]
        assert x.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_it_starts_afresh():
    means = GatedMeans(0.0)
    means.take(torch.tensor([5.0]))
    means.forget()
    assert means.take(torch.tensor([-1.0])).tolist() == pytest.approx([-1.0])
