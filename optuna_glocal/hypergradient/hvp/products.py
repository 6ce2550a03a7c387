"""H Z + ∂g/∂λ on the graph of the user's own loss, together with the user's gradients.

:class:`Products` has two methods. The walk along the graph
(:mod:`~optuna_glocal.hypergradient.hvp.graph_walker`) computes all q rows at once and leaves the
backward to torch. Double backward (:mod:`~optuna_glocal.hypergradient.hvp.double_backward`) is
slower but works wherever autograd can differentiate twice. The walk is preferred. In the first
steps of each graph it is compared with double backward, which takes over for good if they
disagree or if an operation of the graph has no rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient.errors import TangentError, undifferentiable, words
from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward, RunBackward
from optuna_glocal.hypergradient.hvp.graph_walker import Walker

# The largest relative difference between the walk and double backward.
_TOLERANCE = {torch.float64: 1e-9}
_TOLERANCE_SINGLE = 1e-4


class Products:
    """Hessian products by the walk where it is right, by double backward elsewhere.

    Args:
        double: Double backward; the storage of its ``z`` stays the same.
        out: Where H Z + ∂g/∂λ is added, shaped like ``double.z``.
    """

    def __init__(self, double: DoubleBackward, out: Sequence[Tensor]) -> None:
        self._double, self._out = double, list(out)
        tangents = dict(zip(double.params, double.z, strict=True))
        tangents |= {leaf: double.units[name] for name, leaf in double.leaves.items()}
        self._walker = Walker(tangents, dict(zip(double.params, out, strict=True)))
        #: Why the walk is not used; ``None`` while it is.
        self.refusal: str | None = None

    @property
    def seen(self) -> set[str]:
        """Names of leaves that some loss so far has depended on."""
        reached = self._walker.leaves
        return self._double.seen | {
            n for n, leaf in self._double.leaves.items() if leaf in reached
        }

    @property
    def is_settled(self) -> bool:
        """Whether the first steps, which compute everything twice, are over."""
        return self._walker.is_checked if self.refusal is None else self._double.is_settled

    def backward(self, loss: Tensor, run: RunBackward, is_zero: bool) -> None:
        """Does ``loss.backward()``, bit for bit, and adds H Z + ∂g/∂λ to ``out``.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``.
            is_zero: Whether Z = 0, so that only ∂g/∂λ remains.

        Raises:
            TangentError: If the products failed; the user's gradients are in place.
        """
        if not self._start(loss):
            for out, product in zip(
                self._out, self._double.backward(loss, run, is_zero), strict=True
            ):
                if product is not None:
                    out.add_(product.detach())
        else:
            run(loss, not self._walker.is_checked)
            try:
                if self._walker.is_checked:
                    self._walker.down()
                else:
                    self._check(loss, is_zero)
            except Exception as error:
                raise TangentError(undifferentiable(error)) from error
        for leaf in self._double.leaves.values():
            leaf.grad = None

    def _start(self, loss: Tensor) -> bool:
        if self.refusal is None:
            try:
                self._walker.up(loss)
            except Exception as error:
                self.refuse(words(error))
        return self.refusal is None

    def refuse(self, sentence: str) -> None:
        """Uses double backward from now on.

        Args:
            sentence: Why.
        """
        self.refusal = sentence
        self._walker.forget()

    def _check(self, loss: Tensor, is_zero: bool) -> None:
        """Computes the products both ways, compares, and takes those of double backward."""
        before = [out.clone() for out in self._out]
        try:
            self._walker.down()
        except Exception as error:
            self.refuse(words(error))
        walked = [out - old for out, old in zip(self._out, before, strict=True)]
        exact = self._double.products(*self._double.gradients(loss), is_zero)
        for out, old, product in zip(self._out, before, exact, strict=True):
            out.copy_(old if product is None else old + product.detach())
        if self.refusal is not None or all(product is None for product in exact):
            return
        if _agree(walked, exact):
            self._walker.note_check()
        else:
            self.refuse("The walk along the graph and double backward disagree.")


def _agree(walked: Sequence[Tensor], exact: Sequence[Tensor | None]) -> bool:
    """Whether each row of each parameter agrees, relative to the size of its entries.

    The size is the row's largest entry in that parameter, but at least a hundredth of the row's
    largest entry in any.
    """
    pairs = [
        (w, torch.zeros_like(w) if e is None else e.detach())
        for w, e in zip(walked, exact, strict=True)
        if w.numel()
    ]
    tops = [_row_sizes(e) for _, e in pairs]
    largest = torch.stack(tops).amax(0)
    for (w, e), top in zip(pairs, tops, strict=True):
        apart = _row_sizes(w - e)
        allowed = _TOLERANCE.get(w.dtype, _TOLERANCE_SINGLE) * torch.maximum(top, 0.01 * largest)
        if not bool((apart <= allowed).all()):
            return False
    return True


def _row_sizes(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1).abs().amax(1).cpu().double()
