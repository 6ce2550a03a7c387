"""PyTorch Lightning: a callback of its ``Trainer``.

With automatic optimization, Lightning runs forward pass, backward pass, hooks and clipping in a
closure that it hands to ``optimizer.step``. The callback follows that; the module stays as it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from optuna_glocal.integrations import missing
from optuna_glocal.training.callback import GlocalCallback
from optuna_glocal.training.frameworks import checkpoint_of, load_checkpoint, own_checkpoint
from optuna_glocal.training.one_run import callback_of
from optuna_glocal.training.resuming import at_start
from optuna_glocal.training.trial import is_on_every_rank

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise missing("Lightning", "lightning", error) from error


class LightningGlocalCallback(Callback):
    """A :class:`~optuna_glocal.GlocalCallback` around ``trainer.fit``.

    A trial that tunes itself keeps averages of its weights. Validation, checkpoints and the module
    after ``fit`` use the raw or the averaged weights, whichever have the smaller
    ``validation_loss`` at that moment (as with Lightning's ``WeightAveraging``, which always uses
    the averaged ones), shards of them too; training goes on from the raw weights.
    ``Tune(average=False)`` keeps none.

    Lightning's checkpoints hold the callback's state and the raw weights: ``trainer.fit(...,
    ckpt_path=...)`` goes on as if the run had not been interrupted. It neither reports nor prunes:
    put optuna-integration's ``PyTorchLightningPruningCallback`` beside it for that.

    Args:
        trial: The running trial; or, for one run without a study, the lowest and the highest value
            of each hyperparameter that moves: ``{"lr": (1e-6, 1.0)}``, as in
            :class:`~optuna_glocal.SelfTuning`.
        validation_loss: Returns the validation loss as a differentiable scalar tensor, for example
            ``lambda: cross_entropy(module(x_val.to(module.device)), y_val.to(module.device))``.
            Do not call ``validation_step`` there where that logs.
        horizon: T, optimizer steps of a full trial. Default: the trainer's own estimate.
        bind: Called once with the :class:`~optuna_glocal.GlocalCallback` before training, for
            ``lambda glocal: glocal.bind(momentum=1 - glocal["omm"])``.
        arguments: Other arguments of :class:`~optuna_glocal.GlocalCallback`, as ``tune`` or
            ``observe``.

    Attributes:
        glocal: The callback inside; ``None`` before training. In a ``training_step``,
            ``callback.glocal["l2"]`` is the hyperparameter as a tensor.

    Raises:
        ValueError: When training starts, if the module has not exactly one optimizer, or the
            trainer cannot say how long it will train and ``horizon`` was not given.
    """

    def __init__(
        self,
        trial: Any,
        validation_loss: Callable[[], Tensor],
        *,
        horizon: int | None = None,
        bind: Callable[[GlocalCallback], object] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._trial, self._validation_loss, self._horizon = trial, validation_loss, horizon
        self._bind, self._arguments = bind, arguments
        self._precision: Any = None
        self._strategy: Any = None
        self._validates = contextlib.ExitStack()
        self._resumed: Mapping[str, Any] | None = None
        self.glocal: GlocalCallback | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: optimizer, checkpoint and device are in place."""
        if not trainer.is_global_zero and not is_on_every_rank(self._trial):
            return  # the others have no trial to write to
        if len(trainer.optimizers) != 1:
            raise ValueError(
                "LightningGlocalCallback: expected a module with one optimizer, got "
                f"{len(trainer.optimizers)}. Make them groups of one optimizer, or write the loop "
                "yourself, with a GlocalCallback for the one whose hyperparameters you want."
            )
        state, self._resumed = own_checkpoint(self._resumed), None
        with at_start(trainer.optimizers[0], state):
            glocal = callback_of(
                self._trial,
                trainer.optimizers[0],
                self._validation_loss,
                horizon=_steps(trainer) if self._horizon is None else self._horizon,
                **self._arguments,
            )
            if self._bind is not None:
                self._bind(glocal)
        self.glocal = glocal.__enter__()
        if state is not None:
            try:
                load_checkpoint(glocal, state)
            except BaseException as error:
                glocal.__exit__(type(error), error, None)
                raise
        self._precision = trainer.precision_plugin
        self._precision.backward = glocal.routed(self._precision.backward)
        self._strategy, plain = trainer.strategy, trainer.strategy.lightning_module_state_dict
        self._strategy.lightning_module_state_dict = lambda: _best_state(glocal, plain)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook: what was loaded for an earlier fit or test is no longer of use."""
        self._resumed = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: the better weights are validated."""
        if self._precision is not None and self.glocal is not None:
            self._validates.enter_context(self.glocal.weights_to_use())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: the raw weights are trained."""
        self._validates.close()

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: what a checkpoint holds for a run that is resumed from it."""
        return {} if self.glocal is None else {"glocal": checkpoint_of(self.glocal)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook: a checkpoint is loaded; the run goes on from it."""
        self._resumed = state_dict.get("glocal")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: the weights are the last step's."""
        self._leave(None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lightning's hook: pruned, interrupted or failed."""
        self._leave(exception)

    def _leave(self, error: BaseException | None) -> None:
        if self._precision is not None and self.glocal is not None:
            self._validates.close()
            del self._precision.backward, self._strategy.lightning_module_state_dict
            self._precision = self._strategy = None
            self.glocal.__exit__(type(error) if error else None, error, None)
            if error is None:
                self.glocal.keep_best()


def _best_state(glocal: GlocalCallback, plain: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The module's state with the better weights: a copy where these are not in the module."""
    with glocal.weights_to_use() as is_averaged:
        state = plain()
        if not is_averaged:
            return state
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def _steps(trainer: Trainer) -> int:
    estimate = trainer.estimated_stepping_batches
    if not math.isfinite(estimate):
        raise ValueError(
            "horizon: expected optimizer steps of a full trial, got a Trainer without an end. "
            "Give it max_steps or max_epochs, or pass horizon=."
        )
    return int(estimate)
