"""What can happen to a training between steps that its tangents do not see.

Tangents are carried through ``backward`` and ``optimizer.step``. Whatever else changes weights,
optimizer state or the set of trained parameters would make them wrong, so each such event ends
them with a sentence. What escapes inside a backward is found elsewhere:
:mod:`~optuna_glocal.hypergradient.hvp.inspection` looks through the graph,
:class:`~optuna_glocal.hypergradient.hvp.products.Products` compares gradients, and
:mod:`~optuna_glocal.hypergradient.clipping` tells changes of gradients apart.

The cost is one norm per parameter after each step, at each backward and before the next step.
The one at the backward finds weights that are moved for it and put back before the step, as in
sharpness-aware minimization or with quantized weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import norm_each, version_of
from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.optimizers import steps_made

# The largest relative change of a norm that counts as rounding: some optimizers move their weights
# to an average and back (``optimizer.eval()`` and ``optimizer.train()`` of Schedule-Free).
_ROUNDING = 16

# Where each state tensor stands, and how often it was written.
_State = list[tuple[int, int]]


def refuse_resumed(optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer that has made steps already.

    Raises:
        TangentError: If so: the weights depend on the hyperparameters before the first step seen.
    """
    for state in optimizer.state.values():
        if isinstance(state, dict) and state:
            tensors = [v for name, v in state.items() if name != "step"]
            held = [v for v in tensors if isinstance(v, Tensor) and v.any()]
            if steps_made(state) > 0 or ("step" not in state and held):
                raise TangentError(
                    "The optimizer has made steps before: the weights depend on the "
                    "hyperparameters already, and nobody knows how. Enter the callback before the "
                    "first step of the run."
                )


class Escapes:
    """Looks at weights, state and parameters at the end of each step and at the next one's start.

    Args:
        optimizer: The user's optimizer; read only.
        params: The parameters that tangents are carried for.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
        self._optimizer, self._params = optimizer, params
        # As the last step has left them; None before it.
        self._norms: Tensor | None = None
        self._state: _State | None = None

    def before_backward(self) -> None:
        """Looks whether the same parameters are trained as ever, at the weights of the last step.

        Raises:
            EscapeError: If not.
        """
        now = [p for g in self._optimizer.param_groups for p in g["params"] if p.requires_grad]
        if len(now) == len(self._params) and all(map(_is, now, self._params)):
            self._compare_weights()
            return
        known = {id(p) for p in self._params}
        joined = sum(p.numel() for p in now if id(p) not in known)
        what = (
            f"{joined} parameters were unfrozen or added" if joined else "Parameters were frozen"
        )
        raise EscapeError(
            f"{what} after the first backward. Tangents are carried for the parameters that are "
            "trained from the start."
        )

    def after_step(self) -> None:
        """Notes weights and state as the step has left them."""
        self._norms, self._state = self._norms_now(), self._state_now()

    def accept_weights(self) -> None:
        """The weights were written in a way that the tangents know of."""
        self._norms = self._norms_now()

    def before_step(self) -> None:
        """Looks whether they are the same now.

        Raises:
            EscapeError: If not.
        """
        if self._state is None:
            return
        self._compare_weights()
        if self._state_now() != self._state:
            raise EscapeError(
                "The optimizer's state was replaced or written between two steps "
                "(load_state_dict, state.clear). Its tangents are unknown."
            )

    def _compare_weights(self) -> None:
        """Looks whether the weights are those that the last step has left.

        Raises:
            EscapeError: If not.
        """
        if self._norms is None:
            return
        now = self._norms_now()
        if not torch.equal(now, self._norms):
            tolerance = _ROUNDING * torch.finfo(now.dtype).eps * self._norms
            if bool(((now - self._norms).abs() > tolerance).any()):
                raise EscapeError(
                    "Weights were written between two steps (clipping of weights, max-norm, a "
                    "restored checkpoint, a gradient taken at moved weights). How what was "
                    "written depends on the hyperparameters is unknown."
                )

    def _norms_now(self) -> Tensor:
        norms = norm_each([p.detach() for p in self._params])
        first = norms[0]
        return torch.stack([n.to(first) for n in norms])

    def _state_now(self) -> _State:
        state = self._optimizer.state
        return [
            (id(value), version_of(value))
            for p in self._params
            for value in (state[p].values() if p in state else ())
            if isinstance(value, Tensor)
        ]


def _is(a: Tensor, b: Tensor) -> bool:
    return a is b
