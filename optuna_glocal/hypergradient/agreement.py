"""The numbers by which the processes of one training decide, so that all of them decide alike.

Hyperparameters that move must move alike on all ranks. So whatever decides (losses, slopes,
distances, hypergradients) is summed over the ranks first, in one all-reduce of a few numbers each
time that they are looked at; all that follows is the same arithmetic on the same numbers. The
ranks also have to look at the same moments, which therefore depend on nothing but such numbers and
the count of steps.

A rank whose share of the numbers fails (its validation loss raises) sends a notice in their place,
so that the others stop as well instead of waiting for it. All messages have the same length, so a
rank that has stopped for any other reason can send its notice whenever the others expect numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.distributed import Ranks, copies_of
from optuna_glocal.hypergradient.errors import TangentError
from optuna_glocal.hypergradient.optimizers.param_group import numbers

PARTED = "Another process of this training has stopped tuning."
# Seconds that a process waits for the others where the user is to bring all of them.
_PATIENCE = 60.0
# Numbers in one message beside the notice. More go into several.
_LENGTH = 31


class Agreement:
    """What several processes agree on; of a single process, its own numbers as they are.

    Args:
        ranks: The processes; ``None`` for a single one.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks
        self._has_parted = False

    def join(self, ranks: Ranks) -> None:
        """From here on these processes agree, which were thought to be one."""
        self._ranks = ranks

    @property
    def is_alone(self) -> bool:
        """Whether there is only this process."""
        return self._ranks is None

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a part of some parameters."""
        return self._ranks is not None and self._ranks.is_sharded

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self._ranks is None or self._ranks.is_first

    def shares(self, params: Sequence[Tensor]) -> list[float] | None:
        """What to weight this rank's part of a sum over all parameters with, by parameter.

        The weighted parts of all ranks add up to the sum. ``None`` for a single process.
        """
        ranks = self._ranks
        return None if ranks is None else [1 / copies_of(p, ranks) for p in params]

    def numbers(
        self,
        own: Callable[[], Sequence[Tensor | float]],
        parts: Callable[[], Sequence[Tensor]] = list,
    ) -> list[float]:
        """The means of ``own()`` over the ranks, then the sums of ``parts()``.

        Args:
            own: Makes 0-dim tensors or numbers of which every rank has its own.
            parts: Makes 0-dim tensors, of which each rank has a weighted part (:meth:`shares`).

        Raises:
            TangentError: If another rank has stopped.
        """
        if self._ranks is None:
            values = [*own(), *parts()]
            held = [v for v in values if isinstance(v, Tensor)]
            return numbers(held) if len(held) == len(values) else [float(v) for v in values]
        try:
            means, sums = own(), parts()
        except Exception:
            self.part()
            raise
        found = self._sums([*means, *sums])
        n, size = len(means), self._ranks.size
        return [total / size for total in found[:n]] + found[n:]

    def by_name(
        self, make: Callable[[], Mapping[str, float]], names: Collection[str]
    ) -> dict[str, float]:
        """The hypergradients that ``make`` makes; of several processes their mean.

        Args:
            make: Makes h by name.
            names: The names that count. One of which a rank has no h is left out.

        Raises:
            TangentError: If another rank has stopped.
        """
        if self._ranks is None:
            return dict(make())
        order = sorted(names)

        def own() -> list[float]:
            h = make()
            return [h.get(name, math.nan) for name in order]

        means = zip(order, self.numbers(own), strict=True)
        return {name: mean for name, mean in means if not math.isnan(mean)}

    def _sums(self, values: Sequence[Tensor | float]) -> list[float]:
        found: list[float] = []
        for start in range(0, max(1, len(values)), _LENGTH):
            part = values[start : start + _LENGTH]
            message: list[Tensor | float] = [0.0, *part, *[0.0] * (_LENGTH - len(part))]
            found += self._exchange(message)[: len(part)]
        return found

    def _exchange(self, message: Sequence[Tensor | float]) -> list[float]:
        assert self._ranks is not None
        stopped, *sums = self._ranks.sums(message)
        if stopped > 0:
            self._has_parted = True
            raise TangentError(PARTED)
        return sums

    def part(self) -> None:
        """Tells the others, who expect numbers now, that this rank has stopped; only once."""
        if self._ranks is not None and not self._has_parted:
            self._has_parted = True
            self._ranks.sums([1.0] + [0.0] * _LENGTH)

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each number over the ranks, outside of the loop's steps."""
        return list(values) if self._ranks is None else self._ranks.means(values)

    def arrive(self, place: str) -> Callable[[], None]:
        """Tells the others that this process is where all are to meet.

        Args:
            place: What the user has called.

        Returns:
            Waits for the others; without them, a collective operation would wait for ever, or
            meet another one of theirs. Raises ``RuntimeError`` where some do not arrive.
        """
        if self._ranks is None:
            return _nobody_to_wait_for
        arrived, members = self._ranks.arrive(place), self._ranks.members

        def wait() -> None:
            here = arrived(_PATIENCE)
            if absent := [rank for rank in members if rank not in here]:
                raise RuntimeError(
                    f"{place}: expected a call on every process that trains the model, got none "
                    f"on {_listed(absent)} within {_PATIENCE:g} s. Call it on every rank, each "
                    "with its share of the validation data or with all of it."
                )

        return wait

    def averaged(
        self, tensors: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The mean of each tensor over the ranks, which there may be written in place.

        Args:
            tensors: Those of this rank.
            like: Of the same shapes; ``None`` counts as zeros.
        """
        if self._ranks is None:
            return tensors
        pairs = zip(tensors, like, strict=True)
        means = [torch.zeros_like(p) if t is None else t.contiguous() for t, p in pairs]
        self._ranks.average(means)
        return means

    def shards(self, own: Callable[[], Any]) -> dict[int, Any] | None:
        """What each rank of a sharded model has, by its number; ``None`` where none is sharded.

        To be called on all of them; those after the first get an empty dict.
        """
        return self._ranks.gather(own()) if self._ranks and self._ranks.is_sharded else None

    def all_agree(self, still: bool) -> bool:
        """Whether ``still`` is true on every rank, outside of the loop's steps."""
        return still if self._ranks is None else self._ranks.all_agree(still)

    def are_same(self, *facts: object) -> bool:
        """Whether every rank has the same facts, as printed; outside of the loop's steps."""
        fingerprint = float(zlib.crc32(repr(facts).encode()))
        return self.all_agree(self.mean([fingerprint]) == [fingerprint])


def _nobody_to_wait_for() -> None:
    """A single process."""


def _listed(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
