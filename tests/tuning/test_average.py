"""One average keeps its law whatever it leaves out."""

import pytest
import torch

from optuna_glocal.tuning import average as averaging
from optuna_glocal.tuning.average import Average


def linear_run(k, steps, looks=None, peek=()):
    """θ_t = t; the average after every step of ``peek`` is looked at."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    average = Average([x], k)
    for t in range(1, steps + 1):
        x.data.fill_(float(t))
        average.update()
        if t in peek:
            with average.swapped():
                pass
    with average.swapped():
        return x.item()


@pytest.mark.parametrize("k", [0.75, 1.0, 4.0, 6.0])
@pytest.mark.parametrize("steps", [3, 60, 300, 3001])
@pytest.mark.parametrize("peek", [(), (57, 58, 290, 299)])
def test_a_linear_run_has_the_average_of_every_step(k, steps, peek):
    expected = 0.0
    for t in range(1, steps + 1):
        expected += k / (t + k) * (t - expected)
    assert expected == pytest.approx(k * steps / (k + 1))
    assert linear_run(k, steps, peek=peek) == pytest.approx(expected, rel=1e-12)


def test_most_steps_of_a_long_run_are_not_looked_at(monkeypatch):
    looked, real = [0], averaging.lerp_each_

    def counted(*args):
        looked[0] += 1
        real(*args)

    monkeypatch.setattr(averaging, "lerp_each_", counted)
    linear_run(6.0, 40)
    assert looked[0] == 40
    linear_run(6.0, 3000)
    assert looked[0] < 40 + 300


def test_an_average_that_begins_after_a_quarter_of_the_run_is_the_same():
    """At k = 6 the first quarter weighs 4^-6 in the end, and is no copy until then."""
    ends = []
    for defers in (False, True):
        g = torch.Generator().manual_seed(0)
        x = torch.zeros(500, requires_grad=True)
        average = Average([x], 6.0, every_step=True)
        if defers:
            average.defer()
        for t in range(1200):
            if t == 300:
                average.begin()
            x.data.copy_(torch.randn(500, generator=g))
            average.update()
            if defers and t == 200:
                held = x.detach().clone()
                assert not average.kept()[2] and average.is_deferred
                with average.swapped():
                    assert torch.equal(x, held)
        with average.swapped():
            ends.append(x.detach().clone())
    assert 0 < (ends[0] - ends[1]).norm() < 4.0**-6 * 2 * 500**0.5


def test_noise_is_averaged_out():
    """Independent draws around 1: the average's spread is that of some t / k of them."""
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(2000, requires_grad=True)
    average = Average([x], 6.0)
    for _ in range(600):
        x.data.copy_(1 + torch.randn(2000, generator=g))
        average.update()
    with average.swapped():
        variance = (x - 1).var().item()
    assert variance < 0.2


def test_a_look_that_takes_nothing_in_leaves_the_average_as_it_is():
    def averaged(looks):
        p = torch.zeros(3, dtype=torch.float64)
        average = Average([p], 3.0)
        for t in range(400):
            p.add_(torch.sin(torch.arange(3.0, dtype=torch.float64) + t))
            average.update()
            if looks and t % 7 == 0:
                before = p.clone()
                with average.swapped(newest=False):
                    assert not torch.equal(p, before)
                assert torch.equal(p, before)
        average.load()
        return p

    assert torch.equal(averaged(True), averaged(False))
