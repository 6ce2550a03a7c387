"""The coordinates of vectors invert, stay in the range, and have the derivative they claim."""

import pytest
import torch

from optuna_glocal import Vector
from optuna_glocal.tuning.vector_coordinate import VectorCoordinate

KINDS = {
    "log": Vector(6, 1e-3, 1e2),
    "logistic": Vector(6, -1.0, 3.0),
    "softmax": Vector(6, 1e-3, 1e2, fixed_mean=True),
}
START = torch.tensor([0.5, 1.0, 0.2, 1.7, 1.1, 1.5], dtype=torch.float64)  # of mean 1


@pytest.fixture(params=KINDS)
def kind(request):
    return VectorCoordinate(KINDS[request.param], 1.0), KINDS[request.param], request.param


def test_there_and_back(kind):
    coordinate, _, _ = kind
    u = coordinate.to_u(START)
    torch.testing.assert_close(coordinate.to_value(u), START)


def test_the_gradient_is_that_of_the_differences(kind):
    coordinate, _, _ = kind
    h, u, eps = torch.arange(6.0, dtype=torch.float64) - 2, coordinate.to_u(START), 1e-6
    found = coordinate.gradient(h, START)
    for i in range(6):
        by = eps * torch.eye(6, dtype=torch.float64)[i]
        up, down = (h @ coordinate.to_value(u + step) for step in (by, -by))
        assert found[i].item() == pytest.approx((up - down).item() / (2 * eps), rel=1e-6)


def test_no_move_leaves_the_range(kind):
    coordinate, vector, _ = kind
    u = coordinate.to_u(START)
    far = 1e3 * torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
    value = coordinate.to_value(coordinate.moved(u, far))
    assert (value >= vector.low).all() and (value <= vector.high).all()
    assert torch.isfinite(value).all()


def test_a_fixed_mean_stays():
    coordinate = VectorCoordinate(KINDS["softmax"], 1.0)
    u = coordinate.moved(coordinate.to_u(START), torch.tensor([2.0, -1, 0.5, 0, -3, 1]).double())
    value = coordinate.to_value(u)
    assert value.mean().item() == pytest.approx(1.0) and value.max() > 2
