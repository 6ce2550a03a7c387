"""Vectors of hyperparameters, as the training loop has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.mixed_product import MixedProduct
from optuna_glocal.storage.learnt_vector import LearntVector
from optuna_glocal.storage.vector import vectors_of
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.training.run import Run
from optuna_glocal.tuning.blend import Blend
from optuna_glocal.tuning.moving_vector import MovingVector
from optuna_glocal.tuning.snapshot import Snapshot
from optuna_glocal.tuning.tuner import Tuner
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.vector_guard import VectorGuard
from optuna_glocal.tuning.vector_tuner import VectorTuner
from optuna_glocal.tuning.weight_averaging import Averages

if TYPE_CHECKING:
    from optuna_glocal.hypergradient.bindings import Bindings
    from optuna_glocal.training.step_hooks import StepHooks

# Steps between two moves, the size of one of them, the most that they reach together, and the
# moves that are looked back on.
_EVERY, _STEP, _REACH, _MEMORY = 2, 0.1, 34.0, 50


def moving_vectors(trial: Any, params: list[Tensor], horizon: int) -> dict[str, MovingVector]:
    """The vectors that the trial has suggested, by name.

    Args:
        trial: The running trial.
        params: The optimizer's parameters.
        horizon: T, optimizer steps of a full trial.
    """
    out = {}
    for name, vector in vectors_of(trial).items():
        starts = np.array([float(trial.params[each]) for each in vector.names(name)])
        start = np.broadcast_to(starts, (vector.count,)).reshape(vector.shape).copy()
        out[name] = MovingVector(name, vector, start, params[0], horizon)
    return out


def unshared(run: Run, options: Tune) -> str | None:
    """Why the vectors cannot move in a sharded model; ``None`` if they can."""
    moving = sorted(name for name in run.vectors if moves(options, name))
    if not run.agreement.is_sharded or not moving:
        return None
    return (
        f"The model is sharded (fully_shard), where no vectors of hyperparameters move, but "
        f'{moving} were to move. Name what else is to move: tune="lr".'
    )


def with_vectors(
    run: Run, options: Tune, averages: Averages | None, inner: Tuner | Blend | None
) -> Tuner | Blend | VectorTuner | None:
    """What moves all hyperparameters: ``inner``, with the vectors that are to move.

    Args:
        run: The run.
        options: The user's.
        averages: Averages of the weights, if they are kept.
        inner: What moves single hyperparameters.
    """
    moving = [vector for vector in run.vectors.values() if moves(options, vector.name)]
    if not moving:
        return inner
    run.validation.lighten()
    greedy = Greedy(run.optimizer, run.bindings)
    average = None if averages is None else averages.recent
    every = options.every or _EVERY
    default = min(_STEP, _REACH * every / run.horizon)
    on_host = options.snapshot == "cpu"
    snapshot = Snapshot(run.optimizer, greedy.params, run.validation.modules, on_host=on_host)
    guard = VectorGuard(snapshot, moving, run.horizon)
    gradient = ValidationGradient(run.validation, greedy.params, average, guard.note)
    return VectorTuner(
        inner,
        moving,
        MixedProduct(
            greedy, {vector.name: vector.leaf for vector in moving}, _MEMORY, run.agreement
        ),
        gradient,
        guard=guard,
        every=every,
        step=default if options.meta_step is None else options.meta_step,
        horizon=run.horizon,
        told=run.bindings.move,
    )


def moves(options: Observe | Tune, name: str) -> bool:
    """Whether the vector ``name`` moves."""
    if not isinstance(options, Tune):
        return False
    return not options.hyperparameters or name in options.hyperparameters


def names_of(tuner: Tuner | Blend | VectorTuner | None) -> list[str]:
    """The single hyperparameters that a tuner moves."""
    inner = tuner.inner if isinstance(tuner, VectorTuner) else tuner
    return [] if inner is None else list(inner.path[-1][1])


def moves_vectors_only(tuner: Tuner | Blend | VectorTuner) -> bool:
    """Whether no single hyperparameter moves."""
    return isinstance(tuner, VectorTuner) and tuner.inner is None


class Hyperparameters:
    """The part of the callback that gives hyperparameters to the loop."""

    _bindings: Bindings
    _options: Observe | Tune
    _vectors: Mapping[str, MovingVector]
    _hooks: StepHooks

    def __getitem__(self, name: str) -> Tensor:
        """Hyperparameter ``name`` as a tensor that requires grad, for `bind` or a loss.

        A 0-dim tensor; of a vector (:func:`~optuna_glocal.suggest_vector`) one of its shape.

        Raises:
            ValueError: If the trial has suggested no float parameter or vector of that name.
        """
        vector = self._vectors.get(name)
        if vector is None:
            return self._bindings[name]
        if moves(self._options, name):
            return vector.leaf
        # Held or observed: the study's parameters themselves, so that these have a gradient.
        shape, names = vector.vector.shape, vector.vector.names(name)
        if not vector.vector.is_separate:
            return self._bindings[name].expand(shape)
        return torch.stack([self._bindings[each] for each in names]).reshape(shape)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """λ as it stands: the trial's float parameters, moved where the trial tunes itself.

        Of a vector of more than 48 entries it has the mean; :attr:`vectors` has all.
        """
        return self._bindings.values

    @property
    def learnt(self) -> dict[str, LearntVector]:
        """What became of the vectors so far, by name, for ``visualization.plot_vector``."""
        steps = self._hooks.count if hasattr(self, "_hooks") else 0
        return {name: vector.learnt(steps) for name, vector in self._vectors.items()}

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The vectors of hyperparameters as they stand, by name."""
        return {name: vector.leaf.detach().clone() for name, vector in self._vectors.items()}
