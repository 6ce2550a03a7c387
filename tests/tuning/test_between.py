"""A point between two averages is one, and leaves everything as it was."""

import pytest
import torch

from optuna_glocal.tuning.average import Average
from optuna_glocal.tuning.between import Between


def two_averages(**options):
    """Averages with k of 2 and 6 of the same random run, and its raw weights."""
    g = torch.Generator().manual_seed(0)
    params = [torch.zeros(3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)]
    both = [Average(params, k, **options) for k in (2.0, 6.0)]
    for _ in range(20):
        for p in params:
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
        for average in both:
            average.update()
    return params, both


def looked_at(average, params):
    with average.swapped():
        return [p.clone() for p in params]


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_it_lies_at_its_share_of_the_way(share):
    params, both = two_averages()
    raw = [p.clone() for p in params]
    start, goal = (looked_at(average, params) for average in both)
    point = Between(*both, share)
    expected = [(1 - share) * a + share * b for a, b in zip(start, goal, strict=True)]
    torch.testing.assert_close(looked_at(point, params), expected, rtol=1e-12, atol=1e-14)
    assert all(map(torch.equal, params, raw))

    point.exchange()
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-14)
    assert all(map(torch.equal, point.in_memory(averaged=True), raw))
    point.exchange()
    assert all(map(torch.equal, params, raw))
    assert all(map(torch.equal, looked_at(both[0], params), start))
    assert all(map(torch.equal, looked_at(both[1], params), goal))

    point.load()
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-14)


def test_an_error_inside_leaves_the_raw_weights():
    params, both = two_averages()
    raw = [p.clone() for p in params]
    with pytest.raises(RuntimeError, match="theirs"), Between(*both, 0.5).swapped():
        raise RuntimeError("theirs")
    assert all(map(torch.equal, params, raw))


def test_it_takes_memory_only_while_it_is_held():
    params, both = two_averages()
    point = Between(*both, 0.5)
    looked_at(point, params)
    point.exchange()
    point.exchange()
    assert point.kept()[2] == []


def test_there_is_none_before_both_have_begun():
    params, both = two_averages(begins_later=True)
    point = Between(*both, 0.5)
    for average in both:
        assert point.is_deferred
        average.begin()
    assert not point.is_deferred
