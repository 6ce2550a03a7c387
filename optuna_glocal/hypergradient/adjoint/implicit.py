"""The implicit gradient of a run, from its own last steps.

In each of them one Hessian product is taken on the graph of the user's loss, before the user's own
backward, which stays as it is. The validation gradient v is the mean over several looks on the
way: the last weights move little where learning rates decay, and one look may be one minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.adjoint.equilibrium import Equilibrium
from optuna_glocal.hypergradient.adjoint.products import products
from optuna_glocal.hypergradient.adjoint.solver import Solver
from optuna_glocal.hypergradient.adjoint.statistics import Line, Mean, student
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.hvp.inspection import Inspection
from optuna_glocal.hypergradient.invisible.guard import Guard
from optuna_glocal.hypergradient.invisible.user_hooks import silenced
from optuna_glocal.hypergradient.optimizers import flattened
from optuna_glocal.hypergradient.stateful import Stateful, plain

# The gradient is the mean over this share of the steps, the last ones, at most.
_TAIL = 0.5
# What is left out of a gradient, over the residual times the size of what was added up: the
# residual is small in another norm. On ridge regressions whose gradient is near 0 it is 7 and 15.
_LEFT_OUT = 10.0
# Times its standard error that the mean force has at most where a run has come to rest.
_AT_REST = 2.0
# In how many standard errors ⟨p, F⟩ is 0: of a run at rest, and of one that the force shows to be
# moving. All weights say more than one number from a few steps.
_NOUGHT_AT_REST, _NOUGHT = 4.0, 2.0
# What a gradient may differ by, relative to its size, from the multiple of it that backward left.
_APART = 1e-2


@dataclass(frozen=True)
class ImplicitGradient:
    """dL/dλ at the end of a run.

    Attributes:
        gradient: By hyperparameter, shaped like it.
        error: Standard error of ``gradient`` over the steps that it is the mean of, wider where
            these are few. Conjugate gradients add up p of directions, and where what these
            contribute cancels, what the solve has left out counts: ten times the residual times
            the root of their sum of squares.
        residual: ‖v - A p‖ / ‖v‖ in the norm of the solver, with the mean of the minibatches' A,
            beyond what their noise leaves: what the run's effective time left unsolved.
        unfinished: |⟨p, F⟩| beyond its noise: what the validation loss would still change by if
            the run went on until it rests.
        rest: ‖mean force‖ over its standard error, the root of the mean square that noise alone
            would leave: about 1 where the run has come to rest.
        noise: The standard error of v over its size, as far as several looks show it.
        lag: Of AdamW, whose decay is multiplied by its metric: the squares that the metric
            remembers, over those of the gradients in the last steps. About 1 where gradients have
            been alike for as long as it remembers. 0 for other optimizers.
    """

    gradient: dict[str, Tensor]
    error: dict[str, Tensor]
    residual: float
    unfinished: float
    rest: float
    noise: float
    lag: float


class Implicit(Stateful):
    """Solves for p while the last steps of a run are made.

    Args:
        optimizer: The user's optimizer; read only.
        bindings: What λ is bound to.
        steps: K, how many steps at the end have a product, at most.
        accuracy: The residual that is small enough (:class:`~.solver.Solver`).

    Raises:
        TangentError: If it is not known where the optimizer comes to rest.
    """

    _state = (
        "equilibrium", "_v", "_residual", "_force", "_along", "_squares", "_factor", "_left"
    )  # fmt: skip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        steps: int,
        accuracy: float = 0.0,
    ) -> None:
        self._bindings, self._steps, self._accuracy = bindings, steps, accuracy
        self.equilibrium = Equilibrium(optimizer, bindings)
        #: Trainable parameters.
        self.params = self.equilibrium.params
        self._silent = Guard(self.params).silent
        self._solver: Solver | None = None
        self._inspection: Inspection | None = None
        self._v = Mean()
        self._direct: dict[str, Mean] = {}
        self._found: dict[str, Line] = {}
        # Squares of what the directions of conjugate gradients have contributed to the gradient.
        self._terms: dict[str, Tensor] = {}
        self._residual, self._force, self._along = Mean(), Mean(), Mean()
        self._squares = Mean()
        self._factor = 1.0
        self._left = steps
        self._raw: Tensor | None = None
        self._product: Tensor | None = None
        self._mixed: dict[str, Tensor] = {}

    def begin(self) -> None:
        """The last steps begin: metric and decay are fixed as they are."""
        self._solve_with(self.equilibrium.hold())

    def _solve_with(self, speed: Tensor) -> None:
        time = self.equilibrium.time
        self._solver = Solver(speed, time, self._steps, self._accuracy)

    @property
    def has_begun(self) -> bool:
        """Whether :meth:`begin` was called."""
        return self._solver is not None

    def look(self, loss: Tensor) -> None:
        """Another validation gradient.

        Args:
            loss: The validation loss with its graph.
        """
        leaves = self._bindings.in_loss
        with silenced(self.params):
            grads = torch.autograd.grad(loss, [*self.params, *leaves.values()], allow_unused=True)
        n = len(self.params)
        self._v.take(flattened(grads[:n], self.params))
        for name, grad in zip(leaves, grads[n:], strict=True):
            if grad is not None:
                self._direct.setdefault(name, Mean()).take(grad.detach())
        assert self._solver is not None
        self._solver.reconsider(self._v.mean)

    @property
    def may_look(self) -> bool:
        """Whether this step's first backward is still to come, so that v may change."""
        return self._raw is None

    def before_backward(self, loss: Tensor) -> None:
        """Takes the product on a training loss, which keeps its graph.

        Args:
            loss: As the user is about to differentiate it; one of several where gradients
                accumulate.

        Raises:
            TangentError: If the graph has no trustworthy second derivative.
        """
        assert self._solver is not None
        if not self._solver.wants_product:
            return
        if self._inspection is None:  # by now all leaves of the loss are known
            self._inspection = Inspection([*self.params, *self._bindings.in_loss.values()])
        structure = self._inspection.look(loss.grad_fn)
        self._inspection.look_at_others(structure)
        x = self._solver.direction(self._v.mean)
        with self._silent():
            g, product, mixed = products(
                loss,
                self.params,
                x,
                self._bindings.in_loss,
                # By what the gradient will be multiplied is known after the step only.
                lambda p, g: self.equilibrium.stretched(p, self._factor * g),
            )
        self._raw = g if self._raw is None else self._raw + g
        self._product = product if self._product is None else self._product + product
        for name, value in mixed.items():
            held = self._mixed.get(name)
            self._mixed[name] = value if held is None else held + value

    def skip(self) -> None:
        """A step passes whose product is not wanted, or no number: a scaler's overflow."""
        self._raw, self._product, self._mixed = None, None, {}
        if self._left > 0 and self._solver is not None:
            self._left -= 1
            self._solver.skip()

    @torch.no_grad()
    def before_step(self) -> None:
        """Takes the step's product into the solution.

        Raises:
            TangentError: If the gradients are no multiple of those of the losses.
        """
        raw, product, mixed = self._raw, self._product, self._mixed
        self._raw, self._product, self._mixed = None, None, {}
        if self._left <= 0 or self._solver is None:
            return
        if not self._solver.wants_product:
            self.skip()
            return
        if raw is None or product is None:
            raise TangentError("A step was made without glocal.backward.")
        final = flattened([p.grad for p in self.params], self.params)
        if not bool(torch.isfinite(final).all()) or not bool(torch.isfinite(product).all()):
            self.skip()
            return
        factor = self._factor = _factor(final, raw)
        self._left -= 1
        solver, v = self._solver, self._v.mean
        x = solver.direction(v)
        product = self.equilibrium.add_pull(product * factor, x)
        force = self.equilibrium.force(final)
        self._force.take(force)
        self._squares.take(self.equilibrium.scaled_squares(final))
        found = self._partials(x, {name: m * factor for name, m in mixed.items()})
        shows_solution = solver.shows_solution
        if shows_solution and self._left < _TAIL * self._steps:
            self._note(product, float(x @ force), found)
        solver.take(product, v)
        if not shows_solution:
            for name, value in found.items():
                terms = self._terms.setdefault(name, torch.zeros_like(value))
                self._terms[name] = terms + (solver.joined * value) ** 2

    def _partials(self, x: Tensor, mixed: dict[str, Tensor]) -> dict[str, Tensor]:
        """⟨x, ∂F/∂λ⟩ by hyperparameter."""
        found = {name: x.new_tensor(value) for name, value in self.equilibrium.by_decay(x).items()}
        for name, value in mixed.items():
            if name not in self.equilibrium.elsewhere:
                found[name] = found.get(name, torch.zeros_like(value)) + value
        return found

    def _note(self, product: Tensor, along: float, found: dict[str, Tensor]) -> None:
        """One of the last steps.

        The noise of a minibatch's ⟨p, ∂g/∂λ⟩ is largely that of its ⟨p, F⟩, whose mean is 0 where
        the run has come to rest: of the scale of a loss it is all of it.
        """
        self._along.take(product.new_tensor(along))
        self._residual.take(self._v.mean - product)
        for name, value in found.items():
            self._found.setdefault(name, Line()).take(along, value)

    def result(self) -> ImplicitGradient | None:
        """What was found; ``None`` before the last of the steps."""
        if self._left > 0:
            return None
        if self._solver is None or not self._residual.count:
            return None
        gradient, error = {}, {}
        size = self._solver.size(self._v.mean)
        residual = self._unsolved() / size if size > 0 else 0.0
        rest = self._force.significance
        nought = _NOUGHT_AT_REST if rest <= _AT_REST else _NOUGHT
        for name, found in self._found.items():
            direct = self._direct.get(name)
            value, scatter = found.at_zero(nought)
            gradient[name] = -value if direct is None else direct.mean - value
            left_out = _LEFT_OUT * residual * self._terms.get(name, torch.zeros_like(value)).sqrt()
            error[name] = torch.hypot(scatter, left_out)
        squares = float(self._squares.mean)
        count = self._along.count
        noise = float(self._along.sd) / math.sqrt(count) * student(count - 1) / 2
        return ImplicitGradient(
            gradient,
            error,
            residual=residual,
            unfinished=max(0.0, abs(float(self._along.mean)) - nought * noise),
            rest=rest,
            noise=1 / self._v.significance if self._v.significance > 0 else math.inf,
            lag=self.equilibrium.remembered / squares if squares > 0 else 0.0,
        )

    def _unsolved(self) -> float:
        """‖v - A p‖ beyond the root of the mean square that noise alone would leave."""
        assert self._solver is not None
        residual = self._residual
        noise = self._solver.size(residual.sd) ** 2 / residual.count
        return math.sqrt(max(0.0, self._solver.size(residual.mean) ** 2 - noise))

    # -- a resumed run ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the solve depends on, between two steps."""
        means = {"direct": plain(self._direct), "found": plain(self._found)}
        means["terms"] = plain(self._terms)
        return {**super().state_dict(), **means, "solver": plain(self._solver)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        super().load_state_dict(state)
        for key, value in state["direct"].items():
            self._direct[key] = Mean()
            self._direct[key].load_state_dict(value)
        for key, value in state["found"].items():
            self._found[key] = Line()
            self._found[key].load_state_dict(value)
        self._terms = dict(state["terms"])
        if state["solver"] is not None:
            self._solve_with(torch.zeros_like(state["solver"]["p"]))
            assert self._solver is not None
            self._solver.load_state_dict(state["solver"])


def _factor(final: Tensor, raw: Tensor) -> float:
    """What the gradients were multiplied by after backward: clipping, unscaling.

    Raises:
        TangentError: If they are no multiple.
    """
    square = float(raw @ raw)
    if square == 0 or not math.isfinite(square):
        return 1.0
    factor = float(final @ raw) / square
    if float((final - factor * raw).norm()) > _APART * float(final.norm()):
        raise TangentError(
            "The gradients were changed between backward and step in another way than by one "
            "factor, so it is not known where the training comes to rest."
        )
    return factor
