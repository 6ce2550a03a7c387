"""Averaged weights beside the raw ones, never in their place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optuna_glocal.hypergradient._torch import copy_each_, lerp_each_, replace_data
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.distributed import exchange, local, reshard
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.module_parts import (
    flags_of,
    holding,
    recompute_statistics,
    statistics,
)

# k of avg += k / (t + k) (θ - avg), which averages about the newest t/k steps, by where the tuning
# takes its gradient. Measured best: 4 to 8 where the average is only reported (reference/
# horizon.md, section 1), 8 where every second gradient is taken at the average, 3 where learning
# rates decay at the end (12 of by="blend": .92 for 1.04 of a strong cosine run on digits with 30 %
# label noise under SGD, 1.02 for 1.06 under AdamW, .87 for .91 on a table of 200 rows, equal
# within .02 on four others; two seeds each).
At = Literal["raw", "in turn", "blend"]
FORGETTING: dict[At, float] = {"raw": 6.0, "in turn": 8.0, "blend": 3.0}
# k of the second average, which covers the whole run. It is better where a run ends by fitting
# noise: with k = 1, .75, .5 beside 6, 30 % label noise ends at .84, .81, .82 of the loss with 6
# alone (SGD), at .71, .63, .57 (AdamW); layer-wise rates at .95, .96, 1.00, class weights at .90,
# .89, .91.
WHOLE = 0.75
# How many of the t/k steps that make up the average's memory are taken.
_LOOKS = 8

#: A copy of an average: steps, the last one taken in, the averaged tensors.
Kept = tuple[int, int, list[Tensor]]


class Average(Stateful):
    """Polynomial-decay average of the iterates (Shamir & Zhang 2013, section 4).

    avg += k / (t + k) (θ - avg) at every step t. Successive iterates are nearly equal, so where
    the average is only reported, every s-th is taken, s = t / (8 k) rounded down, as

        avg += k s / (t + k s) (θ - avg)

    With this weight a trajectory that is linear in t has the average that it has with s = 1,
    k t / (k + 1): of the weights W with k t = (1 - W) k (t - s) + W (k + 1) t, the only one.

    Why tuning takes gradients at it: on a quadratic with curvature c and gradient noise
    of variance σ², the raw iterate's expected loss settles at about lr σ² / 4, whatever is done,
    so a one-step gradient always asks for a smaller learning rate, though the loss at the end
    would fall by annealing. Averaged over n steps that noise counts σ² / (2 c n) and no longer
    depends on lr (Polyak & Juditsky 1992), while the bias still decays as (1 - lr c)^t: the
    gradient at the average then asks for the lr that removes the bias, without the noise's price.

    Args:
        params: The parameters to average, and any buffers that are to be averaged with them.
        k: Larger forgets faster; 0 never moves.
        every_step: Whether to take every step.
    """

    _state = ("_steps", "_taken", "_average", "_sound")

    def __init__(self, params: Sequence[Tensor], k: float, *, every_step: bool = False) -> None:
        self._params, self._k = list(params), k
        self._looks = math.inf if every_step else _LOOKS
        self._steps = self._taken = 0
        self._average = [local(p).detach().clone() for p in self._params]
        self._is_sharded = any(local(p) is not p for p in self._params)
        # Copied where the training is known to have been in order.
        self._sound: Kept | None = None

    def _held(self) -> list[Tensor]:
        """The parameters; of sharded ones this process's shards."""
        return [local(p) for p in self._params] if self._is_sharded else self._params

    def update(self) -> None:
        """Another step was made."""
        self._steps += 1
        if self._steps - self._taken >= self._steps // max(1.0, self._looks * self._k):
            self._take_in()

    @torch.no_grad()
    def _take_in(self) -> None:
        stride = self._steps - self._taken
        if self._average and stride:
            weight = self._k * stride / (self._steps + self._k * stride)
            lerp_each_(self._average, self._held(), weight)
        self._taken = self._steps

    @torch.no_grad()
    def restart(self) -> None:
        """Begins again at the weights as they are."""
        self._steps = self._taken = 0
        self._sound = None
        for average, p in zip(self._average, self._held(), strict=True):
            average.copy_(p)

    def kept(self) -> Kept:
        """A copy, for :meth:`put_back`."""
        return self._steps, self._taken, [average.clone() for average in self._average]

    @torch.no_grad()
    def put_back(self, kept: Kept) -> None:
        """Goes on from what :meth:`kept` has returned."""
        self._steps, self._taken, held = kept
        copy_each_(self._average, held)

    @torch.no_grad()
    def confirm(self) -> None:
        """All weights so far were those of a training in order: :meth:`write_back` may use them.

        Copies them if a step was taken in since the last call.
        """
        if self._sound is None:
            self._sound = self.kept()
        elif self._sound[1] != self._taken:
            held = self._sound[2]
            copy_each_(held, self._average)
            self._sound = self._steps, self._taken, held

    @torch.no_grad()
    def write_back(self, agree: Callable[[bool], bool]) -> bool:
        """Puts the averaged weights that were confirmed last into the model for good.

        Args:
            agree: Whether what it is given holds in every process of the training.

        Returns:
            Whether they are finite; if not, nothing is changed.
        """
        kept = self.kept() if self._sound is None else self._sound
        if not agree(all(bool(torch.isfinite(average).all()) for average in kept[2])):
            return False
        self.put_back(kept)
        self._write()
        return True

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, with the newest step taken in."""
        self._take_in()
        if self._is_sharded:
            with self._exchanged():
                yield
            return
        raw = [p.detach() for p in self._params]
        for p, average in zip(self._params, self._average, strict=True):
            replace_data(p, average)
        try:
            yield
        finally:
            for p, data in zip(self._params, raw, strict=True):
                replace_data(p, data)

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        """:meth:`swapped` of shards, which must stay where they are: others know their memory."""
        exchange(self._average, self._held())
        try:
            yield
        finally:
            exchange(self._average, self._held())

    @torch.no_grad()
    def load(self) -> None:
        """Copies the averaged weights into the model."""
        self._take_in()
        self._write()

    def _write(self) -> None:
        for p, average in zip(self._held(), self._average, strict=True):
            p.copy_(average)


class Averages(Stateful):
    """The average of the newest steps and that of the whole run.

    Args:
        params: The parameters to average.
        at: Where tuning looks, a key of :data:`FORGETTING`.
        modules: Modules whose floating-point buffers (batch-norm statistics) are averaged with
            the parameters, where they hold any of these.
        agreement: Between the processes of the training.
    """

    _state = ("recent", "whole", "is_better", "_skips", "_is_whole_better")

    def __init__(
        self,
        params: Sequence[Tensor],
        at: At,
        modules: Sequence[nn.Module] = (),
        agreement: Agreement | None = None,
    ) -> None:
        self._agreement = agreement or Agreement()
        self._modules = holding(params, modules)
        averaged = [*params, *statistics(self._modules)]
        # What the tuning looks at is not thinned.
        self.recent = Average(averaged, FORGETTING[at], every_step=at == "in turn")
        #: The average that hardly forgets.
        self.whole = Average(averaged, WHOLE)
        self._both = [self.recent, self.whole]
        #: Whether averaged weights were the better ones in :meth:`best_of`; ``None`` before.
        self.is_better: bool | None = None
        self._is_whole_better = False
        self._skips = False

    @property
    def _better(self) -> Average:
        """The better average in :meth:`best_of`, the recent one before."""
        return self._both[self._is_whole_better]

    def skip(self) -> None:
        """The coming step is not one of the run: it will be undone."""
        self._skips = True

    def update(self) -> None:
        """Takes in the weights after another step."""
        if not self._skips:
            for average in self._both:
                average.update()
        self._skips = False

    def restart(self) -> None:
        """Begins again at the weights as they are."""
        for average in self._both:
            average.restart()

    def swapped(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model holds the better average in :meth:`best_of`, the recent one before."""
        return self._swapped(self._better)

    @contextlib.contextmanager
    def _swapped(self, average: Average) -> Iterator[None]:
        self._reshard()
        with average.swapped():
            try:
                yield
            finally:
                self._reshard()

    def _reshard(self) -> None:
        if self._agreement.is_sharded:
            reshard(self._modules)

    def kept(self) -> list[Kept]:
        """A copy of both, for :meth:`put_back`."""
        return [average.kept() for average in self._both]

    def put_back(self, kept: Sequence[Kept]) -> None:
        """Goes on from what :meth:`kept` has returned."""
        for average, held in zip(self._both, kept, strict=True):
            average.put_back(held)

    def confirm(self) -> None:
        """The training losses so far were in order: :meth:`rescue` may go back to here."""
        self.whole.confirm()

    def rescue(self) -> bool:
        """Writes the average of the whole run, as confirmed last, into the model.

        Returns:
            Whether it is finite; if not, nothing is changed.
        """
        is_finite = self.whole.write_back(self._agreement.all_agree)
        if is_finite:
            self.recent.restart()
        return is_finite

    def best_of(
        self,
        validate: Callable[[], float],
        *,
        maximise: bool = False,
        update_bn: Iterable[Any] | None = None,
    ) -> float:
        """The best of ``validate()`` at the raw weights and at both averages.

        Of several processes the means of theirs are compared, so that all take the same weights.

        Args:
            validate: Returns the figure to compare. One that is not finite is the worst.
            maximise: Whether larger is better.
            update_bn: Batches of inputs on which the batch-norm statistics of each average are
                computed anew, by ``torch.optim.swa_utils.update_bn``. Without, the average of the
                statistics is used.
        """
        batches = None if update_bn is None else list(update_bn)
        values = [math.nan] * 3
        try:
            with flags_of(self._modules):
                values[0] = float(validate())
                for i, average in enumerate(self._both, start=1):
                    with self._swapped(average):
                        if batches is not None:
                            recompute_statistics(self._modules, batches)
                        values[i] = float(validate())
        except Exception:
            if not self._agreement.is_alone:
                self._agreement.mean([math.nan] * 3)  # so every rank keeps its raw weights
                self.is_better = False
            raise
        raw, *averaged = self._agreement.mean(values)
        losses = [_as_loss(value, maximise) for value in averaged]
        least = min(losses)
        self._is_whole_better = losses.index(least) > 0
        self.is_better = least < _as_loss(raw, maximise)
        return averaged[losses.index(least)] if self.is_better else raw

    def load_best(self) -> None:
        """Copies the weights that were best in :meth:`best_of` into the model.

        Raises:
            ValueError: If nothing has been compared yet.
        """
        if self.is_better is None:
            raise ValueError(
                "load_best: expected weights that have been compared, got none. Call "
                "best_of(validate) first."
            )
        if self.is_better:
            self._reshard()
            self._better.load()


def _as_loss(value: float, maximise: bool) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if maximise else value
