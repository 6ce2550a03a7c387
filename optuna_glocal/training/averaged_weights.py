"""The averaged weights of a run, as a user compares them and takes the best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from optuna_glocal import _checks
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.training.resuming import on_device
from optuna_glocal.training.run import Run
from optuna_glocal.training.step_hooks import StepHooks
from optuna_glocal.tuning.weight_averaging import At, Averages

if TYPE_CHECKING:
    from typing_extensions import Self


class AveragedWeights:
    """The part of the callback that compares raw with averaged weights.

    Args:
        is_maximised: Whether larger objective values are better.
    """

    _run: Run
    _hooks: StepHooks
    _options: Observe | Tune

    def __init__(self, is_maximised: bool) -> None:
        self._is_maximised = is_maximised
        self._averages: Averages | None = None
        self._agreement = Agreement()
        # What best_of has returned last, and after how many steps.
        self._best = math.nan, -1
        # After how many steps the weights were last compared by the validation loss.
        self._compared_at = -1

    def _begin(self, run: Run, at: At | None) -> None:
        """The run begins; averages are kept where tuning, or observing, looks ``at`` something."""
        modules, self._agreement = run.validation.modules, run.agreement
        if at is not None:
            self._averages = Averages(run.params, at, modules, run.agreement)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Self]:
        """Inside, the model holds averaged weights: ``with glocal.averaged(): validate()``.

        Those that were better in :meth:`best_of`; before, those of the newest steps.

        Raises:
            ValueError: If no average is kept.
        """
        if self._averages is None:
            raise ValueError(
                "averaged: expected a callback that keeps averages, got one that does not. Pass "
                "observe=Observe(average=True), or let the trial tune itself."
            )
        if self._averages.is_shown:
            yield self
            return
        with self._averages.swapped():
            yield self

    def best_of(
        self,
        validate: Callable[[], float],
        *,
        mode: Literal["min", "max"] | None = None,
        update_bn: Iterable[Any] | None = None,
    ) -> float:
        """The best of ``validate()`` at the raw weights and at averages of them.

        Where several processes train the model, each calls this, and the means of their values
        count. The model is left with its raw weights; :meth:`load_best` leaves the best ones in
        it. The record says whether these were averaged; :attr:`is_averaged` too. What is returned
        after the last step is also the record's value, and the one in the log.

        Args:
            validate: Returns the objective's value, such as a validation loss or an accuracy.
            mode: Whether smaller (``"min"``) or larger (``"max"``) values are better. Default: the
                direction of the study, of its first objective if there are several; ``"min"`` for
                a trial without a study.
            update_bn: Batches of training inputs on which batch-norm statistics are computed anew
                for the averaged weights. Default: the statistics are averaged with the weights,
                in the modules that ``validation_loss`` refers to.

        Raises:
            ValueError: If ``mode`` is unknown.
            RuntimeError: If several processes train the model and some of them do not call this.
        """
        if mode is not None:
            _checks.one_of("mode", mode, ("min", "max"))
        maximise = self._is_maximised if mode is None else mode == "max"
        if self._averages is None:
            wait, found = self._agreement.arrive("best_of"), float(validate())
            wait()
            (value,) = self._agreement.mean([found])
        else:
            value = self._averages.best_of(validate, maximise=maximise, update_bn=update_bn)
        self._best, self._compared_at = (value, self._hooks.count), -1
        return value

    def load_best(self) -> None:
        """Leaves the weights that were best in :meth:`best_of` in the model.

        Without :meth:`best_of`, those of the least ``validation_loss`` where the ``with`` block
        ended. Batch-norm statistics come with them. Where no averages are kept, the model has its
        only weights already.

        Raises:
            ValueError: If averages are kept, inside the block, and :meth:`best_of` has not been
                called.
        """
        if self._averages is not None:
            self._averages.load_best()

    @contextlib.contextmanager
    def best_weights(self) -> Iterator[bool]:
        """Inside, the model holds the better of its raw and its averaged weights.

        For what a loop does between two steps: ``with glocal.best_weights(): validate()``, and a
        checkpoint of the model that is to be used. (One that the run is to be resumed from holds
        the raw weights.) Which are better was told by :meth:`best_of` after the same step;
        otherwise ``validation_loss`` is compared, once after each step. Lightning's validation and
        ``ModelCheckpoint`` and Hugging Face's evaluation and checkpoints do this by themselves in
        a trial that tunes itself. Where several processes train the model, each calls this.

        Yields:
            Whether they are averaged ones. Without averages the raw weights are the only ones.
        """
        averages = self._averages
        if averages is None or self._is_one_of_several or averages.is_shown:
            yield averages is not None and averages.is_shown
            return
        if self._hooks.count not in (self._best[1], self._compared_at):
            self._compare(averages)
        averages.show()
        try:
            yield averages.is_shown
        finally:
            averages.hide()

    @property
    def _is_one_of_several(self) -> bool:
        """Whether other processes train the model as well, which do not average."""
        return self._run.ranks is not None and self._agreement.is_alone

    def _compare(self, averages: Averages) -> None:
        """Decides by the validation loss which weights are better; raw ones if it fails."""

        def give_up(error: Exception) -> None:
            averages.is_better = False

        validate = self._run.validation.own_value
        with self._run.meter.our_time():
            self._run.shield.run(lambda: averages.best_of_noisy(validate), give_up)
        self._compared_at = self._hooks.count

    def _is_undecided(self, averages: Averages) -> bool:
        """Whether the weights as they are have not been compared, and the user does not."""
        return averages.is_better is None or -1 < self._compared_at < self._hooks.count

    # -- for the integrations ---------------------------------------------------------------------

    @property
    def _are_used(self) -> bool:
        """Whether a framework validates and saves the better weights.

        Not where a trial only observes, which changes nothing.
        """
        tunes = isinstance(self._options, Tune) and self._averages is not None
        return tunes and not self._is_one_of_several

    def weights_to_use(self) -> contextlib.AbstractContextManager[bool]:
        """:meth:`best_weights` where a framework validates and saves these."""
        return self.best_weights() if self._are_used else contextlib.nullcontext(False)

    def keep_best(self) -> None:
        """The run is over: the model holds the better weights until they are compared again."""
        if self._averages is not None and self._are_used:
            self._averages.show()

    def raw_weights(self) -> list[Tensor] | None:
        """The raw weights (shards) where a framework saves averaged ones; ``None`` elsewhere."""
        averages = self._averages
        if averages is None or not averages.is_better or not self._are_used:
            return None
        return averages.raw()

    def of_all_ranks(self, own: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """``own()``; where the model is sharded, that of each rank: ``{"ranks": {rank: own}}``."""
        parts = self._agreement.shards(lambda: on_device(torch.device("cpu"), own()))
        return own() if parts is None else {"ranks": parts}

    @torch.no_grad()
    def load_raw_weights(self, held: Sequence[Tensor] | None) -> None:
        """Puts back what :meth:`raw_weights` has given, after the averaged ones were loaded.

        Args:
            held: What it has given; ``None`` leaves the weights as they are.
        """
        if self._averages is not None and held is not None:
            for t, raw in zip(self._averages.raw(), held, strict=True):
                t.copy_(raw)

    @property
    def is_averaged(self) -> bool:
        """Whether averaged weights were the better ones when last compared."""
        return self._averages is not None and bool(self._averages.is_better)
