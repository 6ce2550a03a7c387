"""Batch, layer and group normalization.

With r = 1 / sqrt(var + ε), n = r (x - μ) and ⟨·⟩ the mean over the entries that share μ::

    y   = w n + b                       dn = r (dx - ⟨dx⟩ - n ⟨n dx⟩),     dy = w dn + dw n + db
    u   = w g                           du = w dg + dw g
    ḡ_x = r (u - ⟨u⟩ - n ⟨n u⟩)         dr / r = -r ⟨n dx⟩
    dḡ_x = (dr / r) ḡ_x + r (du - ⟨du⟩ - dn ⟨n u⟩ - n ⟨dn u + n du⟩)
    dḡ_w = Σ (n dg + dn g),             dḡ_b = Σ dg

Where μ and r are running statistics they are constants, and all means vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, saved
from optuna_glocal.hypergradient.hvp.rules.base import Operation, Tangent
from optuna_glocal.hypergradient.hvp.rules.registry import operation
from optuna_glocal.hypergradient.hvp.rules.tangents import plus


class Normalized(Operation):
    """The equations above; a subclass says where the means and the weights lie."""

    needs_cotangent = needs_tangents = True
    input, weight = saved("input"), saved("weight")
    statistics = saved("result1", "result2")
    #: The shape of x.
    shape: torch.Size

    def read(self, node: Node) -> tuple[Tensor, Tensor, Tensor, list[int] | None]:
        """x, μ and r as they broadcast against x, and the axes of the means.

        The axes are ``None`` where μ and r are constants.
        """
        raise NotImplementedError

    def lifted(self, w: Tensor) -> Tensor:
        """Weights, possibly with an axis of q rows, as they broadcast against x."""
        raise NotImplementedError

    def lowered(self, t: Tensor) -> Tensor:
        """The adjoint of :meth:`lifted`: a tangent summed to the shape of the weights."""
        raise NotImplementedError

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """w dn + dw n + db."""
        x, mu, r, axes = self.read(node)
        w = self.weight(node)
        n = (x - mu) * r
        dx0, dw, db = dx
        lifted = None if w is None else self.lifted(w)
        along = dn = None
        if dx0 is not None:
            if axes is None:
                dn = dx0 * r
            else:
                along = (dx0 * n).mean(axes, keepdim=True)
                dn = (dx0 - dx0.mean(axes, keepdim=True)).addcmul_(n, along, value=-1).mul_(r)
        dw = None if dw is None else self.lifted(dw)
        self.kept = n, r, axes, lifted, dn, along, dw
        if not self.passes:
            return None
        out = dn if dn is None or lifted is None else dn * lifted
        out = plus(out, None if dw is None else dw * n)
        out = plus(out, None if db is None else self.lifted(db))
        return None if out is None else out.expand(out.shape[0], *x.shape)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """dḡ_x, dḡ_w, dḡ_b."""
        n, _, _, _, dn, _, _ = self.kept
        g = g.reshape(n.shape)
        dg = None if dg is None else dg.reshape(dg.shape[0], *n.shape)
        out: list[Tangent] = [None, None, None]
        if self.active[0]:
            to_x = self._to_input(g, dg)
            out[0] = None if to_x is None else to_x.reshape(to_x.shape[0], *self.shape)
        if self.active[1]:
            to_w = plus(None if dg is None else dg * n, None if dn is None else dn * g)
            out[1] = None if to_w is None else self.lowered(to_w)
        if self.active[2] and dg is not None:
            out[2] = self.lowered(dg)
        return out

    def _to_input(self, g: Tensor, dg: Tangent) -> Tangent:
        n, r, axes, w, dn, along, dw = self.kept
        u = g if w is None else g * w
        du = plus(dg if dg is None or w is None else dg * w, None if dw is None else dw * g)
        if axes is None:
            return None if du is None else du * r
        own = [axis - 1 - n.ndim if axis > 0 else axis for axis in axes]
        mean = (n * u).mean(own, keepdim=True)
        out: Tangent = None
        # The sum dn u + n du, of which n times the mean is subtracted below.
        beside: Tangent = None
        if du is not None:
            out = du - du.mean(axes, keepdim=True)
            beside = du * n
        if dn is not None:
            out = dn * -mean if out is None else out.addcmul_(dn, mean, value=-1)
            beside = dn * u if beside is None else beside.addcmul_(dn, u)
        if out is None or beside is None:
            return None
        out = out.addcmul_(n, beside.mean(axes, keepdim=True), value=-1)
        if along is not None:
            straight = (u - u.mean(own, keepdim=True)).addcmul_(n, mean, value=-1).mul_(r)
            out = out.addcmul_(along, straight, value=-1)
        return out.mul_(r)


@operation("NativeLayerNormBackward0")
class LayerNorm(Normalized):
    """``layer_norm``: over the last axes."""

    normalized_shape = saved("normalized_shape")

    def read(self, node: Node) -> tuple[Tensor, Tensor, Tensor, list[int] | None]:
        """Statistics are saved with the axes kept."""
        x = self.input(node)
        self.depth = len(self.normalized_shape(node))
        self.shape = x.shape
        return x, *self.statistics(node), list(range(-self.depth, 0))

    def lifted(self, w: Tensor) -> Tensor:
        """(q, *shape) to (q, 1, ..., *shape)."""
        if w.ndim == self.depth:
            return w
        ones = [1] * (len(self.shape) - self.depth)
        return w.reshape(w.shape[0], *ones, *w.shape[1:])

    def lowered(self, t: Tensor) -> Tensor:
        """Summed over the other axes."""
        axes = list(range(1, 1 + len(self.shape) - self.depth))
        return t.sum(axes) if axes else t


@operation("NativeBatchNormBackward0")
class BatchNorm(Normalized):
    """``batch_norm``: per channel, the second axis.

    In training w is constant over the entries that share μ, so the module's equations can be
    multiplied out and then need no tensor of the size of dx besides their results. With m = ⟨dx⟩
    and a = ⟨n dx⟩::

        dy = wr dx + (dw - wr a) n + db - wr m
        ⟨dn g⟩ = r (⟨dx g⟩ - m ⟨g⟩ - a ⟨n g⟩)
        dḡ_x = r (w dg + (dw - wr a) g - r w ⟨n g⟩ dx + D n + E)
        D = 2 r w a ⟨n g⟩ - w ⟨dn g⟩ - w ⟨n dg⟩ - dw ⟨n g⟩
        E = r w (m ⟨n g⟩ + a ⟨g⟩) - w ⟨dg⟩ - dw ⟨g⟩
    """

    training, running_mean = saved("training"), saved("running_mean")
    running_variance = saved("running_var", "eps")

    def read(self, node: Node) -> tuple[Tensor, Tensor, Tensor, list[int] | None]:
        """The batch's statistics in training, else the running ones."""
        x = self.input(node)
        self.shape = x.shape
        if self.training(node) or self.running_mean(node) is None:
            mu, r = self.statistics(node)
            axes = [1, *range(3, x.ndim + 1)]
        else:
            mu = self.running_mean(node)
            variance, eps = self.running_variance(node)
            r = (variance + eps).rsqrt()
            axes = None
        return x, self.lifted(mu), self.lifted(r), axes

    def lifted(self, w: Tensor) -> Tensor:
        """(..., C) to (..., C, 1, 1), with an axis for the batch."""
        ones = [1] * (len(self.shape) - 2)
        lead = w.shape[:-1]
        return w.reshape(*lead, *([1] if lead else []), w.shape[-1], *ones)

    def lowered(self, t: Tensor) -> Tensor:
        """Summed over batch and places."""
        return t.sum([1, *range(3, t.ndim)])

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Uses the multiplied-out equations in training mode."""
        x, mu, r, axes = self.read(node)
        dx0, dw, db = dx
        self.is_short = axes is not None and dx0 is not None
        if axes is None or dx0 is None:
            return super().forward(node, *dx)
        n = (x - mu) * r
        weight = self.weight(node)
        w = 1.0 if weight is None else self.lifted(weight)
        rise = 0.0 if dw is None else self.lifted(dw)
        m, a = dx0.mean(axes, keepdim=True), (dx0 * n).mean(axes, keepdim=True)
        wr = w * r
        slope = rise - wr * a
        self.kept = n, r, w, wr, dx0, rise, slope, m, a, axes
        if not self.passes:
            return None
        shift = -wr * m if db is None else self.lifted(db) - wr * m
        return torch.addcmul(shift, dx0, wr).addcmul_(n, slope)

    def backward(self, g: Tensor, dg: Tangent) -> Sequence[Tangent]:
        """Uses the multiplied-out equations in training mode."""
        if not self.is_short:
            return super().backward(g, dg)
        n, r, w, wr, dx, rise, slope, m, a, axes = self.kept
        dg = torch.zeros_like(dx) if dg is None else dg
        own = [axis - 1 - n.ndim for axis in axes]
        g_mean, ng = g.mean(own, keepdim=True), (n * g).mean(own, keepdim=True)
        dg_mean, ndg = dg.mean(axes, keepdim=True), (dg * n).mean(axes, keepdim=True)
        dng = r * ((dx * g).mean(axes, keepdim=True) - m * g_mean - a * ng)
        out: list[Tangent] = [None, None, None]
        count = n.numel() // n.shape[1]
        if self.active[0]:
            along = 2 * wr * a * ng - w * (dng + ndg) - rise * ng
            level = wr * (m * ng + a * g_mean) - w * dg_mean - rise * g_mean
            to_x = torch.addcmul(r * level, dg, wr).addcmul_(g, r * slope)
            out[0] = to_x.addcmul_(dx, -r * wr * ng).addcmul_(n, r * along)
        if self.active[1]:
            out[1] = (ndg + dng).reshape(len(dx), -1) * count
        if self.active[2]:
            out[2] = dg_mean.reshape(len(dx), -1) * count
        return out


@operation("NativeGroupNormBackward0")
class GroupNorm(Normalized):
    """``group_norm``: x as (N, groups, channels of a group, places)."""

    group = saved("group")

    def read(self, node: Node) -> tuple[Tensor, Tensor, Tensor, list[int] | None]:
        """Statistics are saved as (N, groups)."""
        x, groups = self.input(node), self.group(node)
        self.shape, self.groups = x.shape, groups
        x = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
        mu, r = (s.reshape(x.shape[0], groups, 1, 1) for s in self.statistics(node))
        return x, mu, r, [-2, -1]

    def lifted(self, w: Tensor) -> Tensor:
        """(..., C) to (..., 1, groups, C / groups, 1)."""
        lead = w.shape[:-1]
        return w.reshape(*lead, *([1] if lead else []), self.groups, -1, 1)

    def lowered(self, t: Tensor) -> Tensor:
        """Summed over batch and places."""
        return t.sum([1, -1]).reshape(t.shape[0], -1)

    def forward(self, node: Node, *dx: Tangent) -> Any:
        """Computes in the shape of the groups and returns the shape of x."""
        x, groups = self.input(node), self.group(node)
        dx0 = dx[0]
        if dx0 is not None:
            dx0 = dx0.reshape(dx0.shape[0], x.shape[0], groups, x.shape[1] // groups, -1)
        out = super().forward(node, dx0, *dx[1:])
        return None if out is None else out.reshape(out.shape[0], *x.shape)
