"""Second derivatives of ``F.scaled_dot_product_attention``, whichever kernel the user runs.

The fused kernels (flash, memory-efficient, cuDNN) have a backward that cannot be differentiated.
Running the math backend instead would round differently and change the training. So, while this
is installed, the function still runs the user's kernel, forward and backward, and only the
derivative of its backward is taken through the math backend, from the same inputs.

Out of reach: a name bound before (``from torch.nn.functional import scaled_dot_product_attention``
in the user's module), and dropout inside a fused kernel, whose mask only that kernel knows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

_original = functional.scaled_dot_product_attention
_FUSED = ("FlashAttention", "EfficientAttention", "CudnnAttention", "FusedAttention")
_lock = threading.Lock()
_users = 0


class Installed:
    """Makes attention twice differentiable until :meth:`remove`; several may overlap."""

    def __init__(self) -> None:
        global _users
        self._is_in = True
        with _lock:
            _users += 1
            functional.scaled_dot_product_attention = _attention  # type: ignore[assignment]

    def remove(self) -> None:
        """Once the last one is removed, the function is torch's own again."""
        global _users
        with _lock:
            if self._is_in:
                self._is_in, _users = False, _users - 1
            if _users == 0:
                functional.scaled_dot_product_attention = _original


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
    out = _original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
    if torch.compiler.is_compiling() or out.grad_fn is None or dropout_p > 0:
        return out
    if not any(name in out.grad_fn.name() for name in _FUSED):
        return out
    how = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, **options}
    return _Forward.apply(query, key, value, out, how)  # type: ignore[no-any-return, no-untyped-call]


class _Forward(torch.autograd.Function):
    """The fused kernel's own output, with a backward that is :class:`_Backward`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, out: Tensor, how: dict[str, Any]
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.fused, ctx.how = (query, key, value, out), how
        return out.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        apply: Any = _Backward.apply
        return *apply(*ctx.saved_tensors, grads[0], ctx.fused, ctx.how), None, None


class _Backward(torch.autograd.Function):
    """The fused kernel's own backward, differentiable through the math backend."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grad: Tensor,
        fused: tuple[Tensor, ...],
        how: dict[str, Any],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(query, key, value, grad)
        ctx.how, ctx.graph = how, None
        *inputs, out = fused
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad, retain_graph=True))
        return tuple(next(found) if x.requires_grad else None for x in inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if ctx.graph is None:  # one for all products of this step
            ctx.graph = _math_backward(ctx.saved_tensors, ctx.how)
        inputs, grads = ctx.graph
        pairs = [(g, c) for g, c in zip(grads, cotangents, strict=True) if c is not None]
        products = torch.autograd.grad(
            [g for g, _ in pairs],
            inputs,
            [c for _, c in pairs],
            retain_graph=True,
            allow_unused=True,
        )
        return *products, None, None


def _math_backward(
    saved: Sequence[Tensor], how: dict[str, Any]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    inputs = [x.detach().requires_grad_() for x in saved]
    query, key, value, grad = inputs
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        out = _original(query, key, value, **how)
        return inputs, torch.autograd.grad(out, (query, key, value), grad, create_graph=True)
