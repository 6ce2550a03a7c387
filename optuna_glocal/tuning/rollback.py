"""Restores a self-tuning run to its last sound state when its training breaks.

A hyperparameter that moves can reach a region where training diverges. Every few steps the guard
keeps a snapshot of weights, buffers, averages, optimizer state and hyperparameters if the training
is in order, and restores it when it is not. Nothing else here writes weights.

A training loss may rise in a sound training, too: a term is annealed, a curriculum gets harder, a
constant is added. So a loss that has jumped is a suspicion only. What tells is the validation loss
at the weights as they are and at the snapshot's, both computed now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optuna_glocal.hypergradient._torch import norm_each
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.average import Kept
from optuna_glocal.tuning.snapshot import Snapshot
from optuna_glocal.tuning.weight_averaging import Averages

_EVERY = 20
# Running mean of the training loss over about this many steps.
_MEMORY = 10
# By how much the mean loss must exceed the snapshot's to count as a jump. A factor of 1.5, with
# snapshots only below 1.1, fired on noise (in runs tuned at their averages) and made the noisy
# quadratic four times worse; 3 was as good or better on 80 development starts of each digits task.
# A jump by _FAR is looked into at once, without waiting for the next look.
_FACTOR, _OFFSET = 3.0, 0.1
_FAR = 10.0
# How much worse the validation loss must be than at the snapshot to call a jump a break. It may
# have got worse because an annealed term pulls the weights elsewhere, by up to 3.2 times in runs
# of a small classifier; in breaks it was 20 to 15,000 times worse.
_WORSE = 4.0


@dataclass
class _Sound(Stateful):
    """A run in order."""

    _state = ("loss", "snapshot", "averages", "hyperparameters")

    loss: float
    snapshot: Snapshot
    averages: list[Kept]
    hyperparameters: dict[str, float]


class Guard(Stateful):
    """Keeps snapshots, watches the training loss, and restores.

    Args:
        optimizer: The user's optimizer.
        params: Its trainable parameters.
        hyperparameters: The values at the start, which an early failure returns to.
        validate: Returns the validation loss at the weights as they are.
        modules: Modules whose buffers (batch-norm statistics) belong to the run.
        averages: Averages of the weights, if they are kept.
        on_host: Whether snapshots lie in the host's memory.
        agreement: Between the processes of the training.
    """

    _state = (
        "_mean", "_count", "_looked", "_seen", "_kept", "_has_restored", "_is_suspect", "rollbacks"
    )  # fmt: skip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Sequence[Tensor],
        hyperparameters: Mapping[str, float],
        *,
        on_host: bool = False,
        agreement: Agreement | None = None,
        validate: Callable[[], float],
        modules: Sequence[nn.Module] = (),
        averages: Averages | None = None,
    ) -> None:
        self._optimizer, self._params = optimizer, list(params)
        self._validate, self._averages = validate, averages
        self._agreement, self._mean = agreement or Agreement(), math.nan
        self._count = self._looked = 0
        self._seen: list[Tensor] = []
        self._kept = _Sound(
            math.nan,
            Snapshot(optimizer, self._params, modules, on_host=on_host),
            [] if averages is None else averages.kept(),
            dict(hyperparameters),
        )
        self._has_restored = self._is_suspect = False
        #: Times that a snapshot was restored.
        self.rollbacks = 0

    def see(self, loss: Tensor) -> None:
        """Keeps one step's training loss for the next :meth:`check`, without waiting for it."""
        self._seen.append(loss.detach())

    def _take_in(self) -> None:
        for loss in self._agreement.numbers(lambda: self._seen):
            if self._count == 0:
                self._mean = self._kept.loss = loss
            elif self._has_restored and loss > self._high:
                # So high already at the snapshot's weights: the loss is no longer the same.
                self._rise_to(loss)
                self._mean = loss
            self._has_restored = False
            weight = 1 / min(self._count + 1, _MEMORY)
            self._mean += weight * (loss - self._mean)
            self._count += 1
        self._seen.clear()

    def _rise_to(self, loss: float) -> None:
        """Takes a higher loss for normal; the next snapshot then needs a validation loss."""
        self._kept.loss, self._is_suspect = loss, True

    @property
    def _high(self) -> float:
        """What the mean loss must exceed to count as a jump."""
        return _FACTOR * max(self._kept.loss, 0.0) + _OFFSET

    def check(self, hyperparameters: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        """After a step: takes a snapshot if all is in order, else restores the last one.

        Returns:
            The hyperparameters to return to; ``None`` if nothing was restored.
        """
        self._take_in()
        if not math.isfinite(self._kept.loss):  # the very first loss: the next one counts
            self._count = 0
            return None if self._is_finite() else self._restore()
        is_due = self._count - self._looked >= _EVERY
        is_far = not self._mean <= _FAR * (max(self._kept.loss, 0.0) + _OFFSET)
        if not (is_due or is_far):
            return None
        if is_due:
            self._looked = self._count
        if not math.isfinite(self._mean) or not self._is_finite():
            return self._restore()
        has_jumped = is_far or self._mean > self._high
        if has_jumped or (is_due and self._is_suspect):
            if self._is_worse():
                return self._restore()
            self._is_suspect = False
        if has_jumped:
            self._rise_to(self._mean)
        elif is_due:
            self._keep(self._mean, hyperparameters())
        return None

    def returned_with(self, hyperparameters: Mapping[str, float]) -> None:
        """The run goes on with these; if it fails again, it returns to them."""
        self._kept.hyperparameters = dict(hyperparameters)

    @torch.no_grad()
    def _is_finite(self) -> bool:
        return all(map(math.isfinite, self._agreement.numbers(lambda: norm_each(self._params))))

    def _is_worse(self) -> bool:
        """Whether the validation loss is well above that at the snapshot's weights.

        Both by the loss function as it is now, so that it does not matter if that has changed.
        """
        now = self._validate()
        with self._kept.snapshot.weights_put_back():
            before = self._validate()
        if not math.isfinite(before):
            return False
        return not now <= _WORSE * max(before, 0.0) + _OFFSET

    def _keep(self, loss: float, hyperparameters: Mapping[str, float]) -> None:
        kept = self._kept
        kept.snapshot.renew()
        if self._averages is not None:
            kept.averages = self._averages.kept()
        kept.loss, kept.hyperparameters = loss, dict(hyperparameters)

    @torch.no_grad()
    def _restore(self) -> dict[str, float]:
        kept = self._kept
        kept.snapshot.restore()
        self._forget_direction()
        if self._averages is not None:
            self._averages.put_back(kept.averages)
        self._mean, self.rollbacks, self._has_restored = kept.loss, self.rollbacks + 1, True
        return kept.hyperparameters

    def _forget_direction(self) -> None:
        """Zeroes the momentum, which would lead the same way again."""
        for p in self._params:
            state = self._optimizer.state.get(p, {})
            for name in ("momentum_buffer", "exp_avg"):
                if isinstance(held := state.get(name), Tensor):
                    held.zero_()
