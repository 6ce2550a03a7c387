"""H Z + ∂g/∂λ on the graph of the user's own loss.

:class:`Products` has two methods. The walk along the graph
(:mod:`~optuna_glocal.hypergradient.hvp.graph_walker`) computes all q rows at once, from what the
user's own backward passes along. Double backward
(:mod:`~optuna_glocal.hypergradient.hvp.double_backward`) is slower but works wherever autograd can
differentiate twice. The walk is preferred. In the first steps of each graph it is compared with
double backward, which takes over for good if they disagree or if an operation has no rule.

The user's backward runs once and as written. Double backward runs before it, so the user's call
may free the graph. It runs under a guard that leaves no trace of it
(:mod:`~optuna_glocal.hypergradient.invisible.guard`), and an error in it is kept until the user's
backward has run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_glocal.hypergradient.errors import EscapeError, TangentError, undifferentiable, words
from optuna_glocal.hypergradient.hvp.comparison import distance
from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward
from optuna_glocal.hypergradient.hvp.graph_walker import Walker
from optuna_glocal.hypergradient.hvp.inspection import Inspection
from optuna_glocal.hypergradient.hvp.structure import Structure
from optuna_glocal.hypergradient.invisible.user_hooks import acting, some_act
from optuna_glocal.hypergradient.stateful import Stateful

#: ``loss.backward(retain_graph=...)``, which the caller may count and time.
RunBackward = Callable[[Tensor, bool], None]

# How many times the tolerance of the walk is more than rounding.
_FAR = 100.0
# The largest relative difference between the user's gradients and those of the loss.
_APART = {torch.float64: 1e-7, torch.float32: 1e-4}
_APART_HALF = 0.05


def plain_backward(loss: Tensor, retain_graph: bool) -> None:
    """Calls ``loss.backward()``."""
    loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]


class Products(Stateful):
    """Hessian products by the walk where it is right, by double backward elsewhere.

    Args:
        double: Double backward; the storage of its ``z`` stays the same.
        out: Where H Z + ∂g/∂λ is added, shaped like ``double.z``.
        guard: Makes a context in which a pass of ours leaves no trace. Default: none is needed.
        is_shared: Whether ``loss.backward()`` also averages the gradients over processes.
    """

    _state = ("refusal", "_walker")

    def __init__(
        self,
        double: DoubleBackward,
        out: Sequence[Tensor],
        guard: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        *,
        is_shared: bool = False,
    ) -> None:
        self._double, self._out, self._guard = double, list(out), guard
        self._is_shared = is_shared
        tangents = dict(zip(double.params, double.z, strict=True))
        tangents |= {leaf: double.units[name] for name, leaf in double.leaves.items()}
        self._inspection = Inspection(tangents)
        sinks = dict(zip(double.params, out, strict=True))
        self._walker = Walker(tangents, sinks, guard, self._inspection.admit)
        #: Why the walk is not used; ``None`` while it is.
        self.refusal: str | None = None
        # The structure of the graph whose gradients were not those of its loss, while it is not
        # known why.
        self._doubted: Structure | None = None
        #: How the newest loss changes with λ through the parameters, ``(q,)``, by the walk.
        self.along: Tensor | None = None

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
        return self.refusal is not None or self._walker.is_checked

    def backward(
        self,
        loss: Tensor,
        run: RunBackward,
        is_zero: bool,
        accumulated: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Does ``loss.backward()`` and adds H Z + ∂g/∂λ to ``out``.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``; called once, whatever fails.
            is_zero: Whether Z = 0, so that only ∂g/∂λ remains.
            accumulated: Filled by ``run``: gradients before hooks have changed them in ``p.grad``,
                by ``id(p)``.

        Raises:
            TangentError: If the products failed; the user's gradients are in place.
        """
        twice: _Twice | None = None
        failure: TangentError | None = None
        try:
            self._start(loss)
            if self.refusal is not None or not self._walker.is_checked:
                twice = self._differentiate_twice(loss, is_zero)
        except TangentError as error:
            failure = error.with_traceback(None)  # which would keep our tensors alive
        except Exception as error:
            failure = TangentError(undifferentiable(error))
        if failure is not None:
            self._walker.forget()
        of_loss = self._walker.of_loss
        by_leaf = self._run(loss, run)
        self.along = None if of_loss is None else self._through_params(of_loss, by_leaf)
        if failure is not None:
            raise failure
        self._add(twice, accumulated or {})

    def _run(self, loss: Tensor, run: RunBackward) -> dict[str, Tensor]:
        """The user's backward; returns ∂loss/∂λ, which it leaves in leaves that are ours."""
        leaves = self._double.leaves
        for leaf in leaves.values():
            leaf.grad = None  # of backwards without a product
        try:
            run(loss, False)
            return {name: x.grad for name, x in leaves.items() if x.grad is not None}
        except BaseException:
            self._walker.forget()
            raise
        finally:
            for leaf in leaves.values():
                leaf.grad = None

    def _through_params(self, of_loss: Tensor, by_leaf: Mapping[str, Tensor]) -> Tensor:
        direct = [grad * self._double.units[name] for name, grad in by_leaf.items()]
        return of_loss - sum(direct) if direct else of_loss

    def _start(self, loss: Tensor) -> None:
        """The forward half of the walk, if it is used; and a look at the graph in any case."""
        if self.refusal is None and some_act(self._double.params):
            self.refuse("A hook changes gradients, which the walk along the graph leaves out.")
        if self.refusal is None:
            try:
                self._walker.up(loss)
                structure = self._walker.structure
            except TangentError:
                raise
            except Exception as error:
                self.refuse(words(error))
        if self.refusal is not None:
            structure = self._inspection.look(loss.grad_fn)
        self._inspection.look_at_others(structure)

    def look_at_padding(self) -> None:
        """Raises ``TangentError`` if a row moves that an embedding reads as padding."""
        self._inspection.look_at_padding()

    def check_again(self) -> None:
        """Makes the next step compare the walk, and the user's gradients, once more."""
        if self.refusal is None:
            self._walker.check_again()
            self._doubted = self._walker.structure

    @property
    def is_in_doubt(self) -> bool:
        """Whether :meth:`check_again` has been called, and nothing was compared since."""
        return self._doubted is not None

    def refuse(self, sentence: str) -> None:
        """Uses double backward from now on.

        Args:
            sentence: Why.
        """
        self.refusal = sentence
        self._walker.forget()

    def _differentiate_twice(self, loss: Tensor, is_zero: bool) -> _Twice:
        before = [None if p.grad is None else p.grad.clone() for p in self._double.params]
        changes = some_act(self._double.params)
        with self._guard():
            with acting():
                grads, by_lambda = self._double.gradients(loss)
            if changes:
                products = self._double.jacobian_products(grads, is_zero)
            else:
                products = self._double.products(grads, by_lambda, is_zero)
        plain = [None if g is None else g.detach() for g in grads]
        return _Twice(before, plain, [None if p is None else p.detach() for p in products])

    def _add(self, twice: _Twice | None, accumulated: Mapping[int, Tensor]) -> None:
        """After the user's backward: adds the products, or compares them first."""
        try:
            if twice is None:
                self._walker.down()
                self._refuse_overflow()
                return
            if not self._is_shared:
                self._compare_gradients(twice, accumulated)
            if self.refusal is None:
                self._check(twice.products)
            else:
                for out, product in zip(self._out, twice.products, strict=True):
                    if product is not None:
                        out.add_(product)
            if self.refusal is not None or self._doubted is self._walker.structure:
                self._doubted = None
            self._refuse_overflow()
        except TangentError:
            raise
        except Exception as error:
            raise TangentError(undifferentiable(error)) from error

    def _refuse_overflow(self) -> None:
        """Looks whether the products are finite where the gradients are, in half precision.

        Raises:
            TangentError: If not. Where the gradients are not either, the scaler skips the step.
        """
        if self._inspection.is_half and not all(map(_is_finite, self._out)):
            grads = [p.grad for p in self._double.params if p.grad is not None]
            if all(map(_is_finite, grads)):
                raise TangentError(_OVERFLOW)

    def _compare_gradients(self, twice: _Twice, accumulated: Mapping[int, Tensor]) -> None:
        """Whether the user's backward has left the derivatives of the user's loss.

        Raises:
            EscapeError: If not.
        """
        apart, size, dtypes = 0.0, 0.0, set()
        for p, before, grad in zip(self._double.params, twice.before, twice.grads, strict=True):
            now = accumulated.get(id(p), p.grad)
            if now is None or now.is_sparse:
                continue
            dtypes.add(p.dtype)
            own = torch.zeros_like(p) if grad is None else grad
            theirs = now.detach() if before is None else now.detach() - before
            apart += float((theirs - own).double().square().sum())
            size += float(theirs.double().square().sum()) + float(own.double().square().sum())
        tolerance = max((_APART.get(dtype, _APART_HALF) for dtype in dtypes), default=1.0)
        if self._inspection.is_half:
            tolerance = _APART_HALF
        if math.isfinite(size) and apart > tolerance**2 * size:
            raise EscapeError(_CHANGED)

    def _check(self, exact: Sequence[Tensor | None]) -> None:
        """Compares both ways, and takes the products of double backward.

        Raises:
            EscapeError: If the walk, which was in doubt, is far off. It has been used until now.
        """
        before = [out.clone() for out in self._out]
        try:
            self._walker.down()
        except Exception as error:
            self.refuse(words(error))
        walked = [out - old for out, old in zip(self._out, before, strict=True)]
        for out, old, product in zip(self._out, before, exact, strict=True):
            out.copy_(old if product is None else old + product)
        if self.refusal is not None or all(product is None for product in exact):
            return
        apart = distance(walked, exact)
        if apart <= 1.0:
            self._walker.note_check()
        elif apart > _FAR and self._doubted is self._walker.structure:
            raise EscapeError(_DISAGREE)
        else:
            self.refuse("The walk along the graph and double backward disagree.")


def _is_finite(t: Tensor) -> bool:
    return bool(torch.isfinite(t.coalesce().values() if t.is_sparse else t).all())


_OVERFLOW = (
    "The tangents of the gradients overflow in half precision, though the gradients do not: the "
    "loss is scaled too far for them. Let the scaler start lower, as in "
    "GradScaler(init_scale=2.0**10), or train in bfloat16, which needs none."
)
_DISAGREE = (
    "The gradients of some backward were not those of its loss, and two ways of computing their "
    "derivatives disagree, of which one has been used until now."
)
_CHANGED = (
    "backward left other gradients than those of the loss: a gradient hook changes them, or part "
    "of the graph cannot be differentiated twice. The derivative of the change is unknown."
)


@dataclass
class _Twice:
    """What double backward has found, before the user's own backward runs.

    Attributes:
        before: ``p.grad`` of each parameter, to which the user's backward adds.
        grads: ∂loss/∂θ.
        products: H Z + ∂g/∂λ.
    """

    before: list[Tensor | None]
    grads: list[Tensor | None]
    products: list[Tensor | None]
