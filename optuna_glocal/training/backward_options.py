"""The options of ``loss.backward``, and what they make of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.bindings import Bindings

_FOLLOWED = {"gradient", "inputs", "create_graph"}


def are_followed(options: Mapping[str, Any], params: Iterable[Tensor]) -> bool:
    """Whether tangents can be carried through a backward with these options.

    Not with a graph of the backward, and not where some of the trained parameters are left out.

    Args:
        options: Keyword arguments of ``loss.backward`` except ``retain_graph``.
        params: The optimizer's parameters.
    """
    if options.get("create_graph") or options.keys() - _FOLLOWED:
        return False
    if (given := options.get("inputs")) is None:
        return True
    inputs = {id(t) for t in _as_list(given)}
    return all(id(p) in inputs for p in params if p.requires_grad)


def weighted(loss: Tensor, gradient: Tensor | None) -> Tensor:
    """A loss whose plain backward is ``loss.backward(gradient)``, bit for bit.

    Args:
        loss: Any tensor with a graph.
        gradient: Of the same shape; of any other shape ``loss`` itself comes back, and torch says
            what is wrong with it.
    """
    if gradient is None or gradient.shape != loss.shape or loss.grad_fn is None:
        return loss
    with torch.enable_grad(), torch.autocast(loss.device.type, enabled=False):
        product = loss * gradient.detach().to(loss.dtype)
        return product if product.ndim == 0 else product.sum()


def inputs_of(options: Mapping[str, Any], bindings: Bindings) -> list[Tensor] | None:
    """The user's ``inputs``, and hyperparameters of the loss beside them; ``None`` for all."""
    inputs = options.get("inputs")
    return None if inputs is None else [*_as_list(inputs), *bindings.in_loss.values()]


def _as_list(inputs: Any) -> list[Any]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)
