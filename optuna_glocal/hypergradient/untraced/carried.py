"""Tells when a loss depends on the weights in a way that no graph shows.

Such a dependence may be carried from step to step (an averaged teacher, stored outputs, a detached
hidden state) or arise within one (pseudo labels, a stop-gradient). Its derivative is not known, so
whatever the tangents say is wrong from its first step on. So the training is followed
(:mod:`~optuna_glocal.hypergradient.untraced.following`) from the first step to the window's end,
and so are some evaluations of the validation loss. Before the first step the weights depend on no
hyperparameter.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import Node, node_name, saved, version_of
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.hvp.structure import explore
from optuna_glocal.hypergradient.schedulers.literals import is_literal
from optuna_glocal.hypergradient.untraced.following import Entry, Following
from optuna_glocal.hypergradient.untraced.python_numbers import is_computed_of, is_written

# Steps in which other models' parameters count as there from the start; and when the validation
# loss is looked at after the first times: at _RARE steps, and each time _RARE times later.
_FIRST, _RARE = (1, 2), 4
# Batch norm, whether it computes its statistics itself, and its running mean.
_NORMS = {"NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0"}
_TRAINS, _MEAN = saved("training"), saved("running_mean")
# The relative accuracy of what is kept in single precision.
_SINGLE = 1.2e-7
_CURE = " Observe(tangents=False) records such a trial's losses alone."


class Carried:
    """Looks for dependences on the weights without a graph, in the steps of a window.

    Args:
        params: The optimizer's parameters.
        window: Steps in which tangents are carried.
        bindings: The hyperparameters.
        is_sparse: Whether most steps have no product and are cheap: then the first steps are
            followed, two of each eight, and the last two.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        window: int,
        bindings: Bindings,
        *,
        is_sparse: bool = False,
    ) -> None:
        self._is_sparse, self._bindings = is_sparse, bindings
        trained = [p for p in params if p.requires_grad]
        self._params = {id(p) for p in trained}
        self._window = window
        self._following: Following | None = Following(trained)
        #: What the loop may have got at in its last turn.
        self.access = self._following.access
        self._steps = 0
        self._is_followed = False
        # Counts of writes of the other leaves of the validation loss, when they were first seen.
        self._versions: dict[int, tuple[Tensor, int]] = {}
        self._has_looked_at = 0
        # Running means that it reads, when they were first seen, by address.
        self._means: dict[int, Tensor] = {}
        #: What was found; ``None`` while there is nothing.
        self.sentence: str | None = None

    # -- training ---------------------------------------------------------------------------------

    def look(self, loss: Tensor) -> None:
        """Looks at a training loss, when its graph is made."""
        if (following := self._following) is None:
            return
        if self.sentence is None:
            if (entry := self._entry_of(loss)) is not None:
                self.sentence = _in_loss(entry)
            elif following.has_lost:
                self.sentence = _LOST
            elif following.has_cut:
                self.sentence = _CUT
            elif self._steps == _FIRST[-1]:
                self.sentence = self._by_values(following)
        following.exports.forget()

    def _by_values(self, following: Following) -> str | None:
        """A sentence if numbers of the loss are computed from a hyperparameter's in each step."""
        early, held = following.early, following.early_values
        if not early:
            return None
        names = sorted(self._bindings.bound | set(self._bindings.in_loss))
        values = {name: self._bindings.values[name] for name in names}
        pairs = itertools.combinations(names, 2)
        values |= {f"{a} * {b}": values[a] * values[b] for a, b in pairs}
        for number in early[-1]:
            if not all(number in numbers for numbers in early):
                continue
            for name, value in values.items():
                if is_computed_of(number, value) and (number is value or not is_literal(number)):
                    return _BY_VALUES.format(name=name, value=value, number=number)
        for number in held[-1]:
            for name, value in values.items():
                if not is_written(value) and is_computed_of(number, value, _SINGLE):
                    return _BY_VALUES.format(name=name, value=value, number=number)
        return None

    def _entry_of(self, loss: Tensor) -> Entry | None:
        if self._following is None or not self._following.entries:
            return None
        nodes = set(explore(loss.grad_fn)[0])
        return next((e for e in self._following.entries if e.node in nodes), None)

    def pause(self) -> None:
        """What is called from here on is not the user's forward pass."""
        if self._is_followed and self._following is not None:
            self._following.stop()

    def resume(self) -> None:
        """It is the user's turn again."""
        following = self._following if self._is_followed else None
        if following is not None:
            following.start()
        self.access.begin(is_told=following is not None and following.is_on)

    def made_step(self, steps: int) -> None:
        """Goes on to the next step.

        Args:
            steps: Steps made so far.
        """
        self._steps = steps
        self._is_followed = steps < self._window and self._is_chosen()
        if (following := self._following) is not None:
            following.begin_step(steps, learns=steps in _FIRST)
            is_time = steps >= self._window or (steps >= 16 and steps & (steps - 1) == 0)
            if is_time and self.sentence is None and following.history.depends():
                self.sentence = _BY_NUMBERS

    def _is_chosen(self) -> bool:
        t = self._steps
        return not self._is_sparse or t < 8 or t % 8 < 2 or t >= self._window - 2

    def close(self) -> None:
        """Follows no more; says what has not been said, where the window is not over."""
        if self._following is not None:
            self._following.stop()
            if self.sentence is None:
                self._look_back(self._following)
            self._following = None
            self.access.end()

    def _look_back(self, following: Following) -> None:
        if self._steps <= _FIRST[-1]:
            if following.early and not following.early[-1]:  # of a step that has not begun
                following.early.pop()
            self.sentence = self._by_values(following)
        elif self._steps < self._window and following.history.depends():
            self.sentence = _BY_NUMBERS

    # -- validation -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def validation(self) -> Iterator[None]:
        """Follows an evaluation of the validation loss, in some steps."""
        following = self._following
        if following is None or not self._looks_at_validation():
            yield
            return
        following.entries = []
        following.marks.step, following.marks.learns = self._steps, self._has_looked_at == 0
        following.start()
        try:
            with following.aside():
                yield
        finally:
            following.stop()
            if following.entries and self.sentence is None:
                self.sentence = _IN_VALIDATION
            following.entries = []
            following.marks.learns = self._steps in _FIRST

    def look_at_validation(self, loss: Tensor) -> None:
        """Looks whether a validation loss depends on other tensors that move with the training."""
        if not self._looks_at_validation():
            return
        self._has_looked_at += 1
        nodes, structure = explore(loss.grad_fn)
        self._look_at_statistics(nodes)
        for leaf in structure.variables:
            if leaf is None or id(leaf) in self._params:
                continue
            _, before = self._versions.setdefault(id(leaf), (leaf, version_of(leaf)))
            if version_of(leaf) != before and self.sentence is None:
                self.sentence = _IN_VALIDATION

    def _look_at_statistics(self, nodes: Iterable[Node]) -> None:
        """Looks whether batch norm in evaluation mode reads statistics that move."""
        for node in nodes:
            if (
                node_name(type(node)) not in _NORMS
                or _TRAINS(node)
                or (mean := _MEAN(node)) is None
            ):
                continue
            before = self._means.setdefault(mean.data_ptr(), mean.detach().clone())
            if self.sentence is None and not torch.equal(before, mean):
                self.sentence = _STATISTICS

    def _looks_at_validation(self) -> bool:
        t = self._steps
        return t > 1 and (self._has_looked_at < 2 or t >= self._window or _is_pair(t))


def _is_pair(t: int) -> bool:
    """Whether ``t`` or the step before is a power of ``_RARE``."""
    power = _RARE
    while power < t - 1:
        power *= _RARE
    return power in (t - 1, t)


def _in_loss(entry: Entry) -> str:
    return (
        f"The loss depends on the weights through a tensor of shape {entry.shape} that has no "
        "graph (an averaged teacher, stored outputs, a detached hidden state, pseudo labels, a "
        "stop-gradient). How it follows the hyperparameters is unknown." + _CURE
    )


_BY_NUMBERS = (
    "The loss contains numbers that vary with what was read from the training in earlier steps "
    "(weights of losses by their sizes, a running mean). How they follow the hyperparameters is "
    "unknown." + _CURE
)
_BY_VALUES = (
    "The loss contains the number {number:.6g}, which seems to be computed from {name} = "
    "{value:.6g} as a plain number; how the loss depends on it is not seen then. In the loss, "
    "write glocal[name] in place of the number." + _CURE
)
_CUT = (
    "A compiled function takes values out of its graph (detach, data, item, no_grad), which "
    "cannot be followed inside it. Call it uncompiled." + _CURE
)
_LOST = (
    "A compiled function has computed something from the weights without a graph (under no_grad), "
    "and this version of torch does not tell what. Call it uncompiled, or use a newer torch."
    + _CURE
)
_IN_VALIDATION = (
    "validation_loss depends on the weights through tensors outside the watched optimizer that "
    "move with the training (an average of the weights, stored outputs). How these follow the "
    "hyperparameters is unknown. Let it evaluate the model that is trained." + _CURE
)
_STATISTICS = (
    "validation_loss reads running statistics (batch norm in evaluation mode), which the training "
    "moves; how they follow the hyperparameters is unknown. Put the model in train mode inside "
    "validation_loss: what that does to its buffers is undone." + _CURE
)
