"""What can happen to a training between steps that its tangents do not see.

Tangents are carried through ``backward`` and ``optimizer.step``. Whatever else changes weights,
optimizer state or the set of trained parameters would make them wrong, so each such event ends
them with a sentence. What escapes inside a backward is found elsewhere:
:mod:`~optuna_glocal.hypergradient.hvp.inspection` looks through the graph,
:class:`~optuna_glocal.hypergradient.hvp.products.Products` compares gradients, and
:mod:`~optuna_glocal.hypergradient.clipping` tells changes of gradients apart.

Weights are looked at after each step, at each backward and before the next step. The look at the
backward finds weights that are moved for it and put back before the step, as in sharpness-aware
minimization or with quantized weights. Writes that torch counts are told by the counts, others
(through ``.data`` or numpy) by a sample of the weights. A counted write need not change anything,
as when averaged weights are swapped in for a validation and out again, so values decide. From the
first such write on these are the norms of all weights, until then the sample's. So what is missed
is a single change of few weights, none of them in the sample, that is not made again. At the
backward the sample is read in every :data:`_OFTEN`-th step only, while the counts are the same,
the loop has called nothing since the step that writes uncounted, and nobody else holds the
weights' memory.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import norm_each, version_of
from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.optimizers import steps_made
from optuna_glocal.hypergradient.untraced.loop_access import LoopAccess
from optuna_glocal.hypergradient.weight_sample import WeightSample

# The first steps, after which the norms of all weights are kept in any case.
_FIRST = 2
# The first steps in which the sample is read at each backward, and how often later, in steps.
_OFTEN = 8
# The largest relative change that counts as rounding: some optimizers move their weights
# to an average and back (``optimizer.eval()`` and ``optimizer.train()`` of Schedule-Free).
_ROUNDING = 16

# Where each tensor stands, and how often each was written.
_Places = tuple[list[int], list[int]]


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


def refuse_added(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Refuses param groups that have joined since there were ``count``.

    Raises:
        TangentError: If there are any.
    """
    if len(optimizer.param_groups) != count:
        raise TangentError(
            "A param group was added after the callback was entered, so nobody knows which "
            "hyperparameters it depends on. Add it before."
        )


class Escapes:
    """Looks at weights, state and parameters at the end of each step and at the next one's start.

    Args:
        optimizer: The user's optimizer; read only.
        params: The parameters that tangents are carried for.
        access: What the loop may have got at. Default: nobody tells.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: list[Tensor],
        access: LoopAccess | None = None,
    ) -> None:
        self._optimizer, self._params = optimizer, params
        self._access = access or LoopAccess()
        self._sample = WeightSample(params)
        self._steps, self._keeps_norms = 0, False
        # As the last step has left them; None before it, and norms where they are not kept.
        self._places: _Places | None = None
        self._values: list[Tensor] = []
        self._norms: list[Tensor] | None = None
        self._state: _Places | None = None
        # Whether somebody else held the weights' memory after the last step, when no graph does.
        self._was_shared = False

    def before_backward(self) -> None:
        """Looks whether the same parameters are trained as ever, at the weights of the last step.

        Raises:
            EscapeError: If not.
        """
        now = [p for g in self._optimizer.param_groups for p in g["params"] if p.requires_grad]
        if len(now) == len(self._params) and all(map(operator.is_, now, self._params)):
            self._compare_weights(by_counts=self._steps > _OFTEN and self._steps % _OFTEN != 0)
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
        places = self._places_now()
        if self._places is None or _have_moved(self._places, places):
            self._sample = WeightSample(self._params)
        self._steps += 1
        self._places, self._values = places, self._sample.read()
        keeps_norms = self._keeps_norms or self._steps <= _FIRST
        self._norms = self._norms_now() if keeps_norms else None
        self._state = self._state_now()
        self._was_shared = self._sample.is_shared

    def accept_weights(self) -> None:
        """The weights were written in a way that the tangents know of."""
        if self._places is not None:
            self._sample, self._places = WeightSample(self._params), self._places_now()
            self._values, self._norms = self._sample.read(), self._norms_now()
            self._keeps_norms = True

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

    def _compare_weights(self, *, by_counts: bool = False) -> None:
        """Looks whether the weights are those that the last step has left.

        Args:
            by_counts: Whether equal counts suffice where the loop has written nothing uncounted.

        Raises:
            EscapeError: If not.
        """
        if self._places is None:
            return
        places = self._places_now()
        is_safe = by_counts and self._access.writes_nothing_uncounted and not self._was_shared
        if is_safe and places == self._places:
            return
        have_moved = _have_moved(self._places, places)
        sample = WeightSample(self._params) if have_moved else self._sample
        values = sample.read()
        is_same = all(map(torch.equal, values, self._values))
        if is_same and places == self._places:
            return
        self._keeps_norms = True
        if not (is_same or are_close(values, self._values)) or not (
            self._norms is None or are_close(self._norms_now(), self._norms)
        ):
            raise EscapeError(
                "Weights were written between two steps (clipping of weights, max-norm, a "
                "restored checkpoint, a gradient taken at moved weights). How what was "
                "written depends on the hyperparameters is unknown."
            )

    def _places_now(self) -> _Places:
        return list(map(Tensor.data_ptr, self._params)), list(map(version_of, self._params))

    def _norms_now(self) -> list[Tensor]:
        return list(norm_each([p.detach() for p in self._params]))

    def _state_now(self) -> _Places:
        held = [
            value
            for state in self._optimizer.state.values()  # a look-up would hash in python
            if isinstance(state, dict)
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return list(map(id, held)), list(map(version_of, held))


def _have_moved(before: _Places, now: _Places) -> bool:
    """Whether a tensor has other memory than before."""
    return before[0] != now[0]


def are_close(now: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether each tensor is what it was up to rounding."""
    for a, b in zip(now, before, strict=True):
        tolerance = _ROUNDING * torch.finfo(a.dtype).eps * b.norm()
        if not bool((a - b).norm() <= tolerance):  # nor if it is not finite
            return False
    return True
