"""Dual numbers: forward-mode differentiation of float arithmetic in code that is not ours.

A scheduler computes with python floats. Where one of them is a :class:`Dual`, sums, products and
quotients carry its derivative through the scheduler's own code.
"""

from __future__ import annotations


class Dual(float):
    """A number and its derivative.

    Addition, subtraction, multiplication, division and negation keep the derivative; every other
    operation returns a plain float.

    Args:
        value: The number.
        slope: Its derivative.
    """

    slope: float

    def __new__(cls, value: float, slope: float = 0.0) -> Dual:
        out = super().__new__(cls, value)
        out.slope = float(slope)
        return out

    def __add__(self, other: float) -> Dual:
        return Dual(float(self) + float(other), self.slope + slope_of(other))

    def __sub__(self, other: float) -> Dual:
        return Dual(float(self) - float(other), self.slope - slope_of(other))

    def __rsub__(self, other: float) -> Dual:
        return Dual(float(other) - float(self), slope_of(other) - self.slope)

    def __mul__(self, other: float) -> Dual:
        a, b = float(self), float(other)
        return Dual(a * b, self.slope * b + a * slope_of(other))

    def __truediv__(self, other: float) -> Dual:
        a, b = float(self), float(other)
        return Dual(a / b, (self.slope - a / b * slope_of(other)) / b)

    def __rtruediv__(self, other: float) -> Dual:
        a, b = float(other), float(self)
        return Dual(a / b, (slope_of(other) - a / b * self.slope) / b)

    def __neg__(self) -> Dual:
        return Dual(-float(self), -self.slope)

    __radd__ = __add__
    __rmul__ = __mul__


def slope_of(x: float) -> float:
    """The derivative of a number; 0 for a plain one."""
    return x.slope if isinstance(x, Dual) else 0.0
