"""Which partial derivatives of an implicit gradient are given, how sure they are, and why not.

A partial is given where its sign is known: what is not known of it, the noise of minibatches and
what the run has left undone, is less than half of it. None is given where the validation gradient
itself is mostly noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from optuna_glocal.hypergradient.adjoint.implicit import ImplicitGradient

# What the solve leaves uncertain, as a share of the gradient, beside its scatter and the noise of
# the validation gradient: the deviation from differences of whole runs, on four tasks. It is no
# reason to doubt a sign.
_UNCERTAIN = 0.25
# The residual from which no gradient is given: no solution at all, p = 0, leaves as much.
_SETTLED = 1.0
# Times what is not sure of it that a partial derivative must have to be given: its sign is known.
_SURE = 2.0
# The standard error of the validation gradient, over its size, from which it is mostly noise: less
# than half of its length is left for the gradient itself. Of noise alone it is 1.
_NOISE = 0.87
# Times its standard error that the mean force has at most where a run has come to rest.
_AT_REST = 2.0
# The lag of AdamW's metric from which nothing is said: the metric's part of the derivatives is too
# small by this factor. By weight decay they were .75 of their size in two runs, of wrong sign in
# a third.
_LAGS = 3.0

#: A gradient, its standard deviations, and a sentence.
Given = tuple[dict[str, float], dict[str, float], str]


def given(
    found: ImplicitGradient,
    sizes: Mapping[str, float],
    *,
    moved: Collection[str] = (),
) -> Given:
    """What a record may say of an implicit gradient.

    Args:
        found: At the end of the run.
        sizes: |λ|, or where it is 0 a scale of it, by name.
        moved: Names that the run has moved, of which nothing is given.

    Returns:
        The partials that are given, of numbers only, their standard deviations, and a sentence;
        without partials it says why.
    """
    if not found.residual < _SETTLED:
        return _none(f"the solve has not settled, a residual of {found.residual:.2g} is left")
    finite = {
        name: g.item()
        for name, g in found.gradient.items()
        if name not in moved and g.ndim == 0 and math.isfinite(g.item())
    }
    if not finite:
        return _none("nothing held is weight decay or in the loss")
    if found.lag > _LAGS:
        return _none("AdamW still divides by gradients from long before the end")
    if found.noise > _NOISE:
        return _none("the noise of validation's minibatches hides it")
    unsure = {n: math.hypot(found.error[n].item(), _unfinished(found, sizes[n])) for n in finite}
    known = {n: g for n, g in finite.items() if abs(g) > _SURE * unsure[n]}
    if not known:
        return _none(
            "noise of minibatches, or what the run or the solve has left undone, hides its sign"
        )
    share = math.hypot(_UNCERTAIN, found.noise)
    sd = {n: math.hypot(unsure[n], share * g) for n, g in known.items()}
    told = f"Implicit gradient at the end: residual {found.residual:.2g}"
    if found.rest > _AT_REST:
        told += f"; the run was still moving ({found.rest:.2g} times the noise)"
    return known, sd, f"{told}."


def _none(why: str) -> Given:
    return {}, {}, f"No implicit gradient: {why}."


def _unfinished(found: ImplicitGradient, size: float) -> float:
    """What the loss would still change by if the run came to rest, per e-fold of λ.

    The gradient is that of the point of rest. The way to it depends on λ as well, in a way that is
    not known; this takes it to be proportional to λ.
    """
    return found.unfinished / size
