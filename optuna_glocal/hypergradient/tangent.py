"""Carries Z = dθ/dλ through the user's own training steps, forward in time.

One step is θ' = F(θ, g(θ, λ), s; η(λ)) with g the training gradient, s the optimizer's state and
η the param group's entries. So, with H the Hessian of the training loss,

    Z' = F_θ Z + F_g (H Z + ∂g/∂λ) + F_s Z_s + F_η dη/dλ,      Z'_s likewise,

and the local hypergradient of the validation loss L is h = Zᵀ ∇L + ∂L/∂λ (real-time recurrent
learning; Franceschi et al. 2017, arXiv 1703.01785, eq. 11-15). H Z is computed on the graph of the
user's own loss (:mod:`optuna_glocal.hypergradient.hvp.products`). The model is not evaluated
again, so dropout masks and batch statistics are those of the step. The memory is q times that of
parameters and state, plus one graph, for any number of steps.

Symbols: q hyperparameters, P parameters of one group flattened, Z of shape (q, P).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.escapes import Escapes
from optuna_glocal.hypergradient.gradient_check import GradientCheck
from optuna_glocal.hypergradient.group_tangent import Group
from optuna_glocal.hypergradient.hvp.double_backward import DoubleBackward
from optuna_glocal.hypergradient.hvp.products import Products, RunBackward, plain_backward
from optuna_glocal.hypergradient.invisible.guard import Guard
from optuna_glocal.hypergradient.invisible.user_hooks import accumulated, silenced
from optuna_glocal.hypergradient.loop_arithmetic.gradient_changes import GradientChanges
from optuna_glocal.hypergradient.loop_arithmetic.own_arithmetic import OwnArithmetic
from optuna_glocal.hypergradient.optimizers import PARAM, flattened
from optuna_glocal.hypergradient.product_spacing import Spacing, mean_cosine
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.untraced.loop_access import LoopAccess

# NaN persists, so checking every 8th step suffices.
_FINITE_EVERY = 8


class Tangent(Stateful):
    """Z and the tangents of the optimizer's state.

    Args:
        optimizer: The user's optimizer; read only.
        bindings: What λ is bound to; cannot be changed afterwards.
        spacing: In which steps Hessian products are computed. Default: in every step.
        is_shared: Whether other processes train the same model.
        loop: What the loop may have got at; where it is given, what the loop does to weights and
            gradients by itself is followed. Default: nobody tells.

    Raises:
        TangentError: If a param group mixes dtypes or devices, or the optimizer is unknown and
            cannot be copied.
    """

    _state = (
        "_spacing", "_groups", "_is_zero", "_changes", "_has_escaped", "_check", "_steps",
        "_products", "_seen_in_loss",
    )  # fmt: skip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        spacing: Spacing | None = None,
        *,
        is_shared: bool = False,
        loop: LoopAccess | None = None,
    ) -> None:
        self._spacing = Spacing(most=1) if spacing is None else spacing
        self._bindings = bindings
        self.names = bindings.freeze()
        count = len(optimizer.param_groups)
        self._groups = [Group(optimizer, i, bindings, self.names) for i in range(count)]
        self._gradients = [group.gradients for group in self._groups]
        #: Trainable parameters, group after group.
        self.params = [p for group in self._groups for p in group.params]
        self._escapes = Escapes(optimizer, self.params, loop)
        self._is_zero = True
        self._is_shared = is_shared
        values = [bindings.values[name] for name in self.names]
        self._changes = GradientChanges(self._gradients, values, loop)
        #: What the loop does by itself; ``None`` where that is not followed.
        self.own: OwnArithmetic | None = None
        if loop is not None and self._spacing.is_exact and not is_shared:
            self.own = OwnArithmetic(self._groups, self._escapes, self._changes, values)
        self._has_escaped = False
        #: Whether the loop has written weights since the last step, through which Z was taken.
        self.has_moved = False
        self._steps = 0
        leaves = bindings.in_loss
        like = next(iter(leaves.values()), None)
        rows = torch.eye(len(self.names)).to(like) if like is not None else ()
        double = DoubleBackward(
            self.params,
            [view for group in self._groups for view in group.views(group.z[PARAM])],
            leaves,
            {name: rows[j] for j, name in enumerate(self.names) if name in leaves},
        )
        dg = [view for group in self._groups for view in group.views(group.gradients.dg)]
        silent = Guard(self.params).silent
        self._products = Products(double, dg, silent, is_shared=is_shared)
        self._check = GradientCheck(self._groups, self._doubt)
        if loop is not None:
            loop.before_reading = self._keep_gradients
        self._seen_in_loss: set[str] = set()

    def continue_from(self, before: Tangent) -> None:
        """Takes over the tangents of a run that knew fewer hyperparameters; the new ones' are 0.

        Args:
            before: The tangents until now, which are of no use afterwards.
        """
        rows = [self.names.index(name) for name in before.names]
        for group, old in zip(self._groups, before._groups, strict=True):
            group.continue_from(old, rows)
        self._escapes = before._escapes
        self._changes.continue_from(before._changes)
        self._is_zero, self._steps = before._is_zero, before._steps
        self.own = None
        self._seen_in_loss = before._seen_in_loss | before._products.seen

    # -- backward -------------------------------------------------------------------------------

    def backward(self, loss: Tensor, run: RunBackward = plain_backward) -> None:
        """Does ``loss.backward()``, bit for bit, and adds the tangent H Z + ∂g/∂λ of its gradient.

        Args:
            loss: With its graph.
            run: Called in place of ``loss.backward(retain_graph=...)``.

        Raises:
            TangentError: If the loss cannot be differentiated twice; ``p.grad`` is set all the
                same.
        """
        with self._noticing_escapes():
            self._take_over()
            self._changes.before_backward(loss.grad_fn)
            self._check.settle()
            row = self._steps % max(1, len(self.names))
            before = self._check.along(row)
            try:
                self._escapes.before_backward()
            except EscapeError:
                run(loss, False)
                raise
            with accumulated(self.params) as copies:
                self._products.backward(loss, run, self._is_zero, copies)
            may_wait = self.own is None and not self._is_shared and self._changes.may_wait
            for gradients in self._gradients:
                gradients.note(copies, may_wait=may_wait)
            foreign, along = self._is_shared or self._changes.are_foreign, self._products.along
            if not foreign and along is not None:
                self._compare(row, before, along)
            if self.own is not None:
                self.own.lend()

    @contextlib.contextmanager
    def _noticing_escapes(self) -> Iterator[None]:
        try:
            yield
        except EscapeError:
            self._has_escaped = True
            raise

    def _compare(self, row: int, before: float, along: Tensor) -> None:
        """Compares the gradients with the loss, now or when they are read."""
        if all([gradients.waits for gradients in self._gradients]):
            self._check.wait(row, along)
            return
        for gradients in self._gradients:
            gradients.keep()
        self._check.compare(row, before, along)

    def _doubt(self) -> None:
        """The gradients are not those of the loss, or rounding is large here."""
        self._products.check_again()
        self._changes.doubt()

    def _keep_gradients(self) -> None:
        """Copies the gradients, as the loop is about to read one; raises nothing."""
        if not any([g.waits for g in self._gradients]) or self._changes.are_spent:
            return
        with torch.no_grad(), contextlib.suppress(Exception):  # what is lost is missed at the step
            for gradients in self._gradients:
                gradients.keep()
            self._check.settle()

    def _take_over(self) -> None:
        """Takes the tangents through what the loop has done by itself since the last look."""
        if self.own is not None and self.own.take_over():
            self._is_zero, self.has_moved = False, True

    @property
    def is_settled(self) -> bool:
        """Whether the first steps, which compute everything twice, are over."""
        return self._products.is_settled

    @property
    def is_in_doubt(self) -> bool:
        """Whether gradients of the newest backward were not its loss's, and nobody knows why."""
        return self._products.is_in_doubt

    @property
    def of_gradients(self) -> list[Tensor]:
        """H Z + ∂g/∂λ by group, each ``(q, P)``, which several processes must average."""
        return [gradients.dg for gradients in self._gradients if gradients.are_known]

    # -- step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(self) -> None:
        """Replaces Z by Z'; called when the optimizer is about to step.

        Raises:
            TangentError: If a gradient did not come from :meth:`backward`, was changed in an
                unknown way, or the tangents are no longer finite.
        """
        with self._noticing_escapes():
            self._take_over()
            self._escapes.before_step()
            if skips := self._spacing.skips:
                self._spacing.skipped()
            else:
                self._changes.before_step()
                self._check.settle()
                self._weigh()
            for group in self._groups:
                # Check at the second step, the first at which the optimizer has its state.
                group.advance(skips, check=self._steps == 1)
            self._is_zero = False
            self._changes.end_step(keeps=self._spacing.is_exact)
            self._steps += 1
            if self._steps % _FINITE_EVERY == 0 and not all(
                math.isfinite(group.z[PARAM].sum().item()) for group in self._groups
            ):
                raise TangentError("The tangents are no longer finite: training is chaotic here.")

    @torch.no_grad()
    def after_step(self) -> None:
        """Called when the optimizer has stepped, before anything else happens to the weights.

        Raises:
            TangentError: If the step was not the one that the tangents were taken through.
        """
        self.has_moved = False
        with self._noticing_escapes():
            self._escapes.after_step()
            for group in self._groups:
                group.after_step()
            if self.own is not None:
                self.own.end_step()
                self.own = None if self.own.is_over else self.own

    @torch.no_grad()
    def catch_up(self) -> None:
        """Takes Z through what the loop has done since the last step; no backward follows.

        Raises:
            EscapeError: If that cannot be followed.
        """
        with self._noticing_escapes():
            self._take_over()
            self._escapes.before_backward()

    def _weigh(self) -> None:
        """Weighs this step's product, so that it stands for the steps around it without one."""
        if self._spacing.is_exact:
            self._spacing.weight(None)
            return
        pairs = [(g.dg, g.last) for g in self._gradients if g.are_known and g.last is not None]
        weight = self._spacing.weight(mean_cosine(pairs))
        for gradients in self._gradients:
            gradients.weigh(weight)

    @torch.no_grad()
    def discount(self, factor: float) -> None:
        """Multiplies Z and the state's tangents by ``factor``; 0 starts again from Z = 0."""
        for group in self._groups:
            for z in group.z.values():
                z.mul_(factor)
        self._is_zero = self._is_zero or factor == 0

    # -- read -----------------------------------------------------------------------------------

    def hypergradient(self, loss: Tensor) -> list[float]:
        """h = Zᵀ ∇L + ∂L/∂λ.

        Args:
            loss: The validation loss with its graph.

        Returns:
            One number for each of :attr:`names`.

        Raises:
            TangentError: If the gradient of the loss is not its derivative.
        """
        self._products.look_at_padding()
        leaves = self._bindings.in_loss
        n = len(self.params)
        with silenced(self.params):
            grads = torch.autograd.grad(loss, [*self.params, *leaves.values()], allow_unused=True)
        direct = {k: g for k, g in zip(leaves, grads[n:], strict=True) if g is not None}
        self._seen_in_loss |= set(direct)
        h = [direct[name].item() if name in direct else 0.0 for name in self.names]
        start = 0
        for group in self._groups:
            stop = start + len(group.params)
            if group.params:
                parts = group.z[PARAM] @ flattened(grads[start:stop], group.params)
                h = [a + b for a, b in zip(h, parts.tolist(), strict=True)]
            start = stop
        return h

    @property
    def reached(self) -> set[str]:
        """Names of hyperparameters that the optimizer, or some loss so far, depends on.

        None after an escape: what was said of them before it is not to be trusted either.
        """
        if self._has_escaped:
            return set()
        return self._bindings.bound | self._seen_in_loss | self._products.seen
