"""A polynomial-decay average of a run's weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import copy_each_, lerp_each_, replace_data
from optuna_glocal.hypergradient.distributed import exchange, local
from optuna_glocal.hypergradient.stateful import Stateful

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
        begins_later: Whether it begins deferred (:meth:`defer`).
    """

    _state = ("_steps", "_taken", "_average", "_is_deferred", "_has_ended", "waits")

    def __init__(
        self,
        params: Sequence[Tensor],
        k: float,
        *,
        every_step: bool = False,
        begins_later: bool = False,
    ) -> None:
        #: The parameters, and the buffers that are averaged with them.
        self.params = list(params)
        #: k.
        self.k = k
        self._looks = math.inf if every_step else _LOOKS
        self._steps = self._taken = 0
        self._is_deferred, self._has_ended = begins_later, False
        held = [] if begins_later else self.params
        self._average = [local(p).detach().clone() for p in held]
        self._is_sharded = any(local(p) is not p for p in self.params)
        #: Whether weights are taken in only by :meth:`take_in`, from one who knows that they are
        #: in order.
        self.waits = False

    def _held(self) -> list[Tensor]:
        """The parameters; of sharded ones this process's shards."""
        return [local(p) for p in self.params] if self._is_sharded else self.params

    def defer(self) -> None:
        """Until :meth:`begin` the average is the weights as they are, and takes no memory.

        The first quarter of a run weighs 4^-k in its average: .4 % at k = 4, half at k = .5.
        """
        self._average, self._is_deferred = [], True

    def begin(self) -> None:
        """Averages from here on, as if all weights before had been the present ones."""
        if self._is_deferred:
            self._is_deferred, self._taken = False, self._steps
            self._average = [p.detach().clone() for p in self._held()]

    def end(self) -> None:
        """The average stays as it is from here on."""
        self._has_ended = True

    @property
    def is_deferred(self) -> bool:
        """Whether the average is still the weights as they are."""
        return self._is_deferred

    def update(self) -> None:
        """Another step was made."""
        self._steps += 1
        stride = self._steps // max(1.0, self._looks * self.k)
        if not self.waits and self._steps - self._taken >= stride:
            self.take_in()

    @torch.no_grad()
    def take_in(self) -> None:
        """Takes in the weights as they are."""
        stride = self._steps - self._taken
        if self._average and stride and not self._has_ended:
            weight = self.k * stride / (self._steps + self.k * stride)
            lerp_each_(self._average, self._held(), weight)
        self._taken = self._steps

    @torch.no_grad()
    def restart(self) -> None:
        """Begins again at the weights as they are."""
        self._steps = self._taken = 0
        for average, p in zip(self._average, self._held(), strict=not self._is_deferred):
            average.copy_(p)

    def kept(self) -> Kept:
        """A copy, for :meth:`put_back`."""
        return self._steps, self._taken, [average.clone() for average in self._average]

    @torch.no_grad()
    def put_back(self, kept: Kept) -> None:
        """Goes on from what :meth:`kept` has returned."""
        self._steps, self._taken, held = kept
        if not self._is_deferred:
            copy_each_(self._average, held)

    @torch.no_grad()
    def write_back(self, agree: Callable[[bool], bool]) -> bool:
        """Puts the averaged weights into the model for good.

        Args:
            agree: Whether what it is given holds in every process of the training.

        Returns:
            Whether they are finite; if not, nothing is changed.
        """
        if not agree(all(bool(torch.isfinite(average).all()) for average in self._average)):
            return False
        self._write()
        return True

    @contextlib.contextmanager
    def swapped(self, *, newest: bool = True) -> Iterator[None]:
        """Inside, the model holds the averaged weights.

        Args:
            newest: Whether the newest step is taken in first, unless the average waits. Without,
                the average goes on as if nobody had looked.
        """
        if self._is_deferred:
            yield
            return
        if newest and not self.waits:
            self.take_in()
        if self._is_sharded:
            with self._exchanged():
                yield
            return
        raw = [p.detach() for p in self.params]
        for p, average in zip(self.params, self._average, strict=True):
            replace_data(p, average)
        try:
            yield
        finally:
            for p, data in zip(self.params, raw, strict=True):
                replace_data(p, data)

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        """:meth:`swapped` of shards, which must stay where they are: others know their memory."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """The model's weights and the averaged ones change places, until this is called again."""
        if not self.waits:
            self.take_in()
        if not self._is_deferred:
            exchange(self._average, self._held())

    def in_memory(self, *, averaged: bool) -> list[Tensor]:
        """The tensors in this average's memory, or those in the model's."""
        return self._average if averaged and not self._is_deferred else self._held()

    @torch.no_grad()
    def load(self) -> None:
        """Copies the averaged weights into the model."""
        if not self.waits:
            self.take_in()
        self._write()

    def _write(self) -> None:
        for p, average in zip(self._held(), self._average, strict=not self._is_deferred):
            p.copy_(average)
