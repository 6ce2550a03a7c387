"""Whether one number was computed from another: what floats tell of where they come from.

Numbers that people type have few digits (0.1, 3e-4); numbers that a search suggests have sixteen.
So ``eta_min = 0.0023716403`` beside a learning rate of 0.023716403 was computed from it, and
``eta_min = 0.001`` was not. Where the learning rate itself is round, 0.1 say, ``eta_min = 0.01``
may be either, and this module says so.
"""

from __future__ import annotations

import math
import struct
from typing import Literal

#: ``"none"``: no relation; ``"multiple"``: a constant times the value; ``"unclear"``: either.
Relation = Literal["none", "multiple", "unclear"]

_ROUNDING = 1e-14
# What people multiply or divide a learning rate by, but for powers of ten.
_COMMON = (1.0, 2.0, 2.5, 4.0, 5.0, 8.0)
_LARGEST_FRACTION = 128
# Layers between the one with the largest rate and the one with the smallest.
_MOST_LAYERS = 64


def ratio(now: float, before: float) -> float:
    """The factor between two values of an entry; 1 where it was 0."""
    return now / before if before != 0 else 1.0


def is_round(x: float, digits: int = 3) -> bool:
    """Whether a number has few significant digits, or its reciprocal has."""
    return x != 0 and any(
        math.isclose(y, float(f"{y:.{digits}g}"), rel_tol=_ROUNDING) for y in (x, 1 / x)
    )


def relation(number: float, value: float) -> Relation:
    """Whether ``number`` is a constant times ``value``.

    Args:
        number: What an optimizer or scheduler holds.
        value: A hyperparameter.

    Returns:
        ``"multiple"`` where the ratio is one that people write (with few digits, a fraction, the
        root of one, a power) and ``value`` is no round number;
        ``"unclear"`` where both are round and the ratio is a common one; else ``"none"``.
    """
    if not (number and value and math.isfinite(number) and math.isfinite(value)):
        return "none"
    found = _relation(number, value)
    # TorchDistributedTrial suggests in float32.
    return _relation(number, _single(value)) if found == "none" else found


def _relation(number: float, value: float) -> Relation:
    share = number / value
    if is_typed(value):
        if not is_typed(number):
            return "multiple" if is_round(share, 2) or _is_power(share) else "none"
        return "unclear" if _is_common(share) else "none"
    is_known = is_round(share) or _is_fraction(share) or _is_fraction(share * share)
    return "multiple" if is_known or _is_power(share) else "none"


def is_typed(x: float) -> bool:
    """Whether a number is exactly the float that a short decimal number is read as."""
    return x == float(f"{x:.4g}")


def _single(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0]) if abs(x) < 1e38 else x


def _is_common(share: float) -> bool:
    """1, 2, 4, 5, ... times or over a power of ten."""
    return any(
        math.isclose(y / 10.0 ** math.floor(math.log10(y) + 1e-9), c, rel_tol=1e-9)
        for y in (share, 1 / share)
        for c in _COMMON
    )


def _is_power(share: float) -> bool:
    """A factor of two or three digits, once for each layer: ``lr * 0.75**k``."""
    return share > 0 and any(
        0.3 < (root := float(f"{share ** (1 / k):.3f}")) < 1
        and math.isclose(root**k, share, rel_tol=_ROUNDING * k)
        for k in range(2, _MOST_LAYERS)
    )


def _is_fraction(share: float) -> bool:
    """A batch of 96 over 256, for example."""
    for below in range(1, _LARGEST_FRACTION + 1):
        above = share * below
        if 0.5 < above < _LARGEST_FRACTION**2 and abs(above - round(above)) <= _ROUNDING * above:
            return True
    return False
