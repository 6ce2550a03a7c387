"""The change of a gradient between backward and step is recognised from the numbers alone."""

import math

import oracles
import pytest
import torch

from optuna_glocal.hypergradient.clipping import Gradient, Norms, through
from optuna_glocal.hypergradient.errors import UnknownChangeError

SIZES = (3, 4, 2)


def raw_and_directions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.randn(n, generator=generator, dtype=torch.float64) for n in SIZES]
    z = [torch.randn(2, n, generator=generator, dtype=torch.float64) for n in SIZES]
    return raw, z


def by_norm(grads, most, which=(0, 1, 2), **options):
    params = [torch.zeros_like(g, requires_grad=True) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_([params[i] for i in which], most, **options)
    return [p.grad for p in params]


CHANGES = {
    "nothing": lambda g: [x.clone() for x in g],
    "norm": lambda g: by_norm(g, 1.1),
    "norm of some": lambda g: by_norm(g, 0.3, (0, 2)),
    "two norms": lambda g: by_norm(by_norm(g, 0.3, (0,)), 0.7, (1, 2)),
    "norm not reached": lambda g: by_norm(g, 100.0),
    "inf norm": lambda g: by_norm(g, 0.4, norm_type=math.inf),
    "1 norm": lambda g: by_norm(g, 1.5, norm_type=1, foreach=True),
    "checked": lambda g: by_norm(g, 0.5, error_if_nonfinite=True, foreach=False),
    "value": lambda g: [x.clamp(-0.4, 0.4) for x in g],
    "averaged": lambda g: [x / 4 for x in g],
    "unscaled": lambda g: [x / 65536.0 for x in g],
}


@pytest.mark.parametrize("change", CHANGES)
def test_tangent_is_the_derivative_of_the_change(change):
    raw, z = raw_and_directions()
    function = CHANGES[change]
    changes = [Gradient(r, f, d) for r, f, d in zip(raw, function(raw), z, strict=True)]
    got = through(changes)
    e = 1e-6
    for row in range(2):
        ahead = function([r + e * d[row] for r, d in zip(raw, z, strict=True)])
        behind = function([r - e * d[row] for r, d in zip(raw, z, strict=True)])
        for i in range(len(raw)):
            expected = (ahead[i] - behind[i]) / (2 * e)
            noise = oracles.rounding(ahead[i], operations=4) / e
            torch.testing.assert_close(got[i][row], expected, rtol=1e-7, atol=noise)


def test_an_unknown_change_is_refused():
    raw, z = raw_and_directions()
    final = [r + torch.linspace(0, 1, len(r)) for r in raw]
    with pytest.raises(UnknownChangeError):
        through([Gradient(r, f, d) for r, f, d in zip(raw, final, z, strict=True)])


def test_float32_rounding_is_not_a_change():
    raw, z = raw_and_directions()
    raw, z = [r.float() for r in raw], [d.float() for d in z]
    got = through([Gradient(r, f, d) for r, f, d in zip(raw, by_norm(raw, 0.5), z, strict=True)])
    exact_raw, exact_z = raw_and_directions()
    final = by_norm(exact_raw, 0.5)
    exact = through([Gradient(*a) for a in zip(exact_raw, final, exact_z, strict=True)])
    limit = oracles.rounding(*got)
    torch.testing.assert_close([a.double() for a in got], exact, rtol=0, atol=limit)


@pytest.mark.parametrize("order", [2.0, math.inf, 1.0])
def test_a_norm_that_nobody_would_write_shows_itself_at_the_second_step(order):
    """A clip that is itself a hyperparameter; at first taken for the 2-norm."""
    norms, most = Norms(), 0.2345678

    def take(seed):
        raw, z = raw_and_directions(seed)
        final = by_norm(raw, most, norm_type=order)
        return through([Gradient(*a) for a in zip(raw, final, z, strict=True)], norms)

    take(0)
    if order == 2:
        take(1)
    else:
        with pytest.raises(UnknownChangeError, match=f"{order}-norm, but the first"):
            take(1)


def one(c, size):
    """A single gradient of one norm, whatever its order, multiplied by c."""
    raw = torch.tensor([size], dtype=torch.float64)
    return [Gradient(raw, c * raw, torch.ones(1, 1, dtype=torch.float64))]


def clipped(c):
    """Clipped to .3 by a norm, which happens to multiply by c."""
    return one(c, 0.3 / c - 1e-6)


@pytest.mark.parametrize("c", [0.303 * (1 + 5e-7), 0.25 * (1 - 4e-7), 1 / (300 * (1 + 5e-7))])
def test_a_clipping_that_is_nearly_by_a_plain_number_stays_one(c):
    norms = Norms()
    through(clipped(0.4771), norms)
    assert float(through(clipped(c), norms)[0]) == pytest.approx(0, abs=1e-4)
    fresh = Norms()
    if _is_three_digits(c):
        through(clipped(c), fresh)
    else:
        with pytest.raises(UnknownChangeError, match="an earlier step looked like"):
            through(clipped(c), fresh), through(clipped(0.4771), fresh)


def _is_three_digits(c):
    return abs(c - 0.303) < 1e-3


@pytest.mark.parametrize("c", [0.303, 0.25, 1 / 300, 3.0])
@pytest.mark.parametrize("size", [1.0, 2.7182818, 31.4159])
def test_a_plain_number_is_one_whatever_the_norms(c, size):
    norms = Norms()
    for step in range(6):
        assert float(through(one(c, size * 1.1**step), norms)[0]) == pytest.approx(c)


def test_a_bound_that_changes_keeps_the_norm():
    norms = Norms()
    for step, most in enumerate((0.3, 0.25, 0.21)):
        raw, z = raw_and_directions(step)
        final = by_norm(raw, most, norm_type=math.inf)
        through([Gradient(*a) for a in zip(raw, final, z, strict=True)], norms)
        assert norms.order(1.0, {2.0: 1.0, math.inf: most, 1.0: 9.0}) == math.inf


SCALE = 1024.0
UNSCALED = {
    # 1024 over the factor of the clipping is nearly a whole number.
    "norm": lambda g, size: by_norm(g, 1024 / 3001.002 * size),
    "value": CHANGES["value"],
    "nothing": CHANGES["nothing"],
    "norm not reached": CHANGES["norm not reached"],
}


@pytest.mark.parametrize("change", UNSCALED)
def test_what_follows_on_taking_back_the_factor_of_the_loss(change):
    """GradScaler's unscale_, and then clipping."""
    raw, z = raw_and_directions()
    size = float(torch.stack([r.norm() for r in raw]).norm())
    function = UNSCALED[change]
    clipped = (lambda g: function(g, size)) if change == "norm" else function
    scaled = [
        Gradient(SCALE * r, f, SCALE * d) for r, f, d in zip(raw, clipped(raw), z, strict=True)
    ]
    got = through(scaled, None, SCALE)
    e = 1e-6
    for j in range(2):
        ahead, behind = (
            clipped([r + s * e * d[j] for r, d in zip(raw, z, strict=True)]) for s in (1, -1)
        )
        for t, a, b in zip(got, ahead, behind, strict=True):
            torch.testing.assert_close(t[j], (a - b) / (2 * e), rtol=1e-4, atol=1e-6)
