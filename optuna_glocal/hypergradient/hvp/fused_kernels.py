"""Second derivatives of fused kernels for which torch has none, or a wrong one.

* ``F.scaled_dot_product_attention``: the fused kernels (flash, memory-efficient, cuDNN) have a
  backward that cannot be differentiated. The math backend could be, but rounds differently.
* ``torch._weight_norm`` (``weight_norm`` in both its spellings): the derivative of its fused
  backward holds the norm constant (torch 2.13; ``gradgradcheck`` fails).
* ``torch.embedding_bag``, ``F.multi_margin_loss`` and ``torch.cdist``
  (:mod:`~optuna_glocal.hypergradient.hvp.missing_derivatives`).

While :class:`Installed` is in effect all still run the user's kernel, forward and backward, bit
for bit; only the derivative of the backward is taken through a plain formula of the same inputs.

Two cases are out of reach: a name that the user's module has imported before (``from
torch.nn.functional import scaled_dot_product_attention``), and dropout inside a fused kernel,
whose mask only that kernel knows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_glocal.hypergradient._torch import (
    fused_weight_norm,
    is_fused_kernel,
    set_weight_norm,
)
from optuna_glocal.hypergradient._torch_modes import is_transformed, unfollowed
from optuna_glocal.hypergradient.hvp.missing_derivatives import (
    cdist,
    distances,
    embedding_bag,
    margin_loss,
    multi_margin_loss,
    parts_of_bag,
)
from optuna_glocal.hypergradient.invisible.shared_patch import SharedPatch

Formula = Callable[..., Tensor]

_fused_attention = functional.scaled_dot_product_attention


class Installed(SharedPatch):
    """Makes these functions twice differentiable until :meth:`remove`."""

    @staticmethod
    def _replace() -> None:
        _install(_attention, _weight_norm, _embedding_bag, _multi_margin_loss, _cdist)

    @staticmethod
    def _put_back() -> None:
        _install(_fused_attention, fused_weight_norm, embedding_bag, multi_margin_loss, cdist)


def _install(attention: Any, weight_norm: Any, bag: Any, margins: Any, apart: Any) -> None:
    functional.scaled_dot_product_attention = attention
    set_weight_norm(weight_norm)
    torch.embedding_bag = bag
    functional.multi_margin_loss = margins
    torch.cdist = apart


@functools.wraps(embedding_bag)
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    is_plain = torch.compiler.is_compiling() or is_transformed()
    rest = include_last_offset, padding_idx
    how = scale_grad_by_freq, mode, sparse, per_sample_weights, *rest
    out = embedding_bag(weight, indices, offsets, *how)
    if is_plain or out[0].grad_fn is None:
        return out
    if (parts := parts_of_bag(out, weight, indices, offsets, *how)) is None:
        return out

    def kernel(weight: Tensor, factors: Tensor | None = None) -> Tensor:
        how = scale_grad_by_freq, mode, sparse, factors, *rest
        return embedding_bag(weight, indices, offsets, *how)[0]

    return (_twice(kernel, *parts), *out[1:])


@functools.wraps(cdist)
def _cdist(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor:
    kernel = functools.partial(cdist, p=p, compute_mode=compute_mode)
    return _twice(kernel, functools.partial(distances, p=p) if p in (1, 2) else None, [x1, x2])


@functools.wraps(multi_margin_loss)
def _multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    old = (size_average, reduce)

    def kernel(input: Tensor) -> Tensor:
        return multi_margin_loss(input, target, p, margin, weight, *old, reduction)

    def formula(input: Tensor) -> Tensor:
        return margin_loss(input, target, p, margin, weight, reduction)

    return _twice(kernel, formula if old == (None, None) else None, [input])


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    how = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, **options}
    kernel = functools.partial(_fused_attention, dropout_p=dropout_p, **how)

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return _fused_attention(query, key, value, **how)

    return _twice(kernel, None if dropout_p > 0 else formula, [query, key, value])


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    def formula(v: Tensor, g: Tensor) -> Tensor:
        norm = torch.norm_except_dim(v, 2, dim)
        return v * (g.reshape(norm.shape) / norm)

    return _twice(functools.partial(fused_weight_norm, dim=dim), formula, [v, g])


def _twice(kernel: Formula, formula: Formula | None, inputs: Sequence[Tensor]) -> Tensor:
    """What a kernel makes of its inputs, but twice differentiable if it is a fused one.

    The kernel computes on tensors of its own: a gradient by one of the inputs is not to count what
    another one, which may be the same or computed from it, passes on.

    Args:
        kernel: The user's; draws no random numbers where there is a formula.
        formula: The same in plain torch; ``None`` for none.
        inputs: The kernel's.
    """
    is_plain = torch.compiler.is_compiling() or is_transformed() or not torch.is_grad_enabled()
    are_plain = all(type(x) in (Tensor, torch.nn.Parameter) for x in inputs)
    if formula is None or is_plain or not are_plain or not any(x.requires_grad for x in inputs):
        return kernel(*inputs)
    with unfollowed():  # nothing leaves the graph here
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        out = kernel(*leaves)
    if out.grad_fn is None or not is_fused_kernel(out.grad_fn):
        return kernel(*inputs)
    return _Forward.apply((out, leaves), formula, *inputs)  # type: ignore[no-any-return, no-untyped-call]


class _Forward(torch.autograd.Function):
    """The fused kernel's own output, with a backward that is :class:`_Backward`."""

    @staticmethod
    def forward(
        ctx: Any, fused: tuple[Tensor, list[Tensor]], formula: Formula, *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.fused, ctx.formula = fused, formula
        return fused[0].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        apply: Any = _Backward.apply
        return None, None, *apply(ctx.fused, ctx.formula, grads[0], *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    """The fused kernel's own backward, differentiable through the formula."""

    @staticmethod
    def forward(
        ctx: Any,
        fused: tuple[Tensor, list[Tensor]],
        formula: Formula,
        grad: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, *inputs)
        ctx.formula, ctx.graph = formula, None
        out, leaves = fused
        wanted = [x for x in leaves if x.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad, retain_graph=True))
        return tuple(next(found) if x.requires_grad else None for x in leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if ctx.graph is None:  # made once for all products of this step
            ctx.graph = _graph_of(ctx.formula, *ctx.saved_tensors)
        leaves, grads = ctx.graph
        pairs = [(g, c) for g, c in zip(grads, cotangents, strict=True) if c is not None]
        products = torch.autograd.grad(
            [g for g, _ in pairs],
            leaves,
            [c for _, c in pairs],
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),  # by the cotangents, in which it is linear
            allow_unused=True,
        )
        return None, None, *products


def _graph_of(
    formula: Formula, grad: Tensor, *inputs: Tensor
) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
    """Copies of grad and inputs as leaves, and the formula's gradients with their graph."""
    leaves = [x.detach().requires_grad_() for x in (grad, *inputs)]
    with torch.enable_grad():
        out = formula(*leaves[1:])
        return leaves, torch.autograd.grad(out, leaves[1:], leaves[0], create_graph=True)
