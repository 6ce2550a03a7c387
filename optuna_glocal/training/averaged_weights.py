"""The averaged weights of a run, as a user compares them and takes the best."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from optuna_glocal import _checks
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.training.run import Run
from optuna_glocal.tuning.weight_averaging import At, Averages

if TYPE_CHECKING:
    from typing_extensions import Self


class AveragedWeights:
    """The part of the callback that compares raw with averaged weights.

    Args:
        is_maximised: Whether larger objective values are better.
    """

    def __init__(self, is_maximised: bool) -> None:
        self._is_maximised = is_maximised
        self._averages: Averages | None = None
        self._agreement = Agreement()

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
        with self._averages.swapped():
            yield self

    def best_of(
        self,
        validate: Callable[[], float],
        *,
        mode: Literal["min", "max"] | None = None,
        update_bn: Iterable[Any] | None = None,
    ) -> float:
        """The best of ``validate()`` at the raw weights and at the two averages of them.

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
        """
        if mode is not None:
            _checks.one_of("mode", mode, ("min", "max"))
        maximise = self._is_maximised if mode is None else mode == "max"
        if self._averages is None:
            (value,) = self._agreement.mean([float(validate())])
        else:
            value = self._averages.best_of(validate, maximise=maximise, update_bn=update_bn)
        self._note_best(value)
        return value

    def _note_best(self, value: float) -> None:
        """Told of what :meth:`best_of` returns."""

    def load_best(self) -> None:
        """Leaves the weights that were best in :meth:`best_of` in the model.

        Batch-norm statistics come with them. Where no averages are kept, the model has its only
        weights already.

        Raises:
            ValueError: If averages are kept and :meth:`best_of` has not been called.
        """
        if self._averages is not None:
            self._averages.load_best()

    @property
    def is_averaged(self) -> bool:
        """Whether averaged weights were the better ones when last compared."""
        return self._averages is not None and bool(self._averages.is_better)
