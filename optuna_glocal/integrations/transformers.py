"""Hugging Face: a ``Trainer`` with a :class:`~optuna_glocal.GlocalCallback` around ``train``.

A ``TrainerCallback`` sees neither the loss nor an exception, so this is a subclass. For any other
trainer use the mixin: ``class Mine(GlocalTrainerMixin, Seq2SeqTrainer): ...``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from optuna_glocal.hypergradient.schedulers.huggingface import keep_floor
from optuna_glocal.integrations import missing
from optuna_glocal.training.callback import GlocalCallback
from optuna_glocal.training.frameworks import checkpoint_of, load_checkpoint, own_checkpoint
from optuna_glocal.training.one_run import SelfTuning, callback_of
from optuna_glocal.training.report import starts_only
from optuna_glocal.training.resuming import at_start
from optuna_glocal.training.trial import is_on_every_rank

try:
    import accelerate  # noqa: F401  (transformers itself asks for it at the first Trainer only)
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_pt_utils import find_batch_size
except ImportError as error:
    raise missing("transformers", "transformers", error) from error

_logger = logging.getLogger("optuna_glocal")
#: Of the file in each checkpoint that a resumed run reads.
STATE_NAME = "glocal.pt"
#: Examples in the default ``validation_loss``: the usual batch of 8 is too few to tell raw from
#: averaged weights, and some fifty looks at more would cost a short fine-tuning over 5 %.
LEAST_EXAMPLES = 32


class GlocalTrainerMixin:
    """Puts a :class:`~optuna_glocal.GlocalCallback` around ``train``.

    ``learning_rate``, ``weight_decay``, ``adam_beta1``, ``adam_beta2`` and ``adam_epsilon`` of the
    trial are bound where the optimizer holds the same values. In ``hyperparameter_search`` with
    Optuna the trial is the search's, and the trainer reports and prunes by itself; elsewhere
    give ``trial=`` and report yourself. Checkpoints hold what ``resume_from_checkpoint`` needs.

    A trial that tunes itself keeps averages of its weights. Evaluation during training, the model
    in the checkpoints (hence ``load_best_model_at_end``) and the model after ``train`` use the raw
    or the averaged weights, whichever have the smaller ``validation_loss`` at that moment;
    training goes on from the raw weights. ``Tune(average=False)`` keeps none.

    Under a schedule, and the trainer's default is a linear decay, a run keeps the learning rate
    that it is given unless that is clearly wrong. With
    ``TrainingArguments(lr_scheduler_type="constant")`` it finds its own rate, and decays it.

    Args:
        args: The trainer's own arguments, positional and by keyword.
        trial: The running trial; or, for one run without a study, the lowest and the highest value
            of each hyperparameter that moves: ``{"lr": (1e-6, 1.0)}``, as in
            :class:`~optuna_glocal.SelfTuning`. Without either, this is the plain trainer.
        validation_loss: Returns the validation loss as a differentiable scalar tensor. Default:
            the mean of ``compute_loss`` in eval mode over the first batches of the evaluation data
            set that hold 32 examples together, the same ones in every look.
        horizon: T, optimizer steps of a full trial. Default: the trainer's ``max_steps``.
        bind: Called once with the :class:`~optuna_glocal.GlocalCallback` before training.
        glocal_arguments: Its other arguments, as ``{"tune": True}``.

    Attributes:
        glocal: The callback inside; ``None`` before training and without a trial.

    Raises:
        ValueError: When training starts, without ``validation_loss`` and one ``eval_dataset``.
    """

    def __init__(
        self,
        *args: Any,
        trial: Any = None,
        validation_loss: Callable[[], Tensor] | None = None,
        horizon: int | None = None,
        bind: Callable[[GlocalCallback], object] | None = None,
        glocal_arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._given, self._validation_loss, self._horizon = trial, validation_loss, horizon
        self._bind, self._arguments = bind, dict(glocal_arguments or {})
        self._watched: Any = None
        self._plain_backward: Callable[..., Any] | None = None
        self._resumed: Mapping[str, Any] | None = None
        self.glocal: GlocalCallback | None = None
        self.add_callback(_AtBegin(self._enter))  # type: ignore[attr-defined]

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """``Trainer.train``; a record is left in the trial, whatever ends the training."""
        searched = trial if hasattr(trial, "set_user_attr") else None  # else Ray's or W&B's dict
        self._watched, self.glocal = self._given if searched is None else searched, None
        self._resumed = None
        try:
            result = super().train(  # type: ignore[misc]
                resume_from_checkpoint, trial, *args, **kwargs
            )
        except BaseException as error:
            self._leave(error)
            raise
        self._leave(None, keeps_best=True)
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """``Trainer.evaluate``; during training, of the better weights."""
        with self._weights_to_use():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """``Trainer.save_model``; during training, of the better weights."""
        with self._weights_to_use():
            super().save_model(*args, **kwargs)  # type: ignore[misc]

    def _weights_to_use(self) -> contextlib.AbstractContextManager[bool]:
        if self._plain_backward is None or self.glocal is None:
            return contextlib.nullcontext(False)
        return self.glocal.weights_to_use()

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """``Trainer.hyperparameter_search``; says in the log what ``BestRun`` does not."""
        best = super().hyperparameter_search(*args, **kwargs)  # type: ignore[misc]
        study = getattr(self._watched, "study", None)
        if study is not None and (told := starts_only(study)):
            _logger.info("%s", told)
        return best

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.glocal is None:
            return
        state = checkpoint_of(self.glocal)  # on every rank: each may have its own shards
        if _as_trainer(self).args.should_save:
            torch.save(state, os.path.join(output_dir, STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        path = "" if checkpoint is None else os.path.join(checkpoint, STATE_NAME)
        if os.path.isfile(path):
            self._resumed = torch.load(path, map_location="cpu", weights_only=True)

    def _load_best_model(self, *args: Any, **kwargs: Any) -> Any:
        self._leave(None)  # while the weights are the last step's
        return super()._load_best_model(*args, **kwargs)  # type: ignore[misc]

    def _enter(self, optimizer: Any, scheduler: Any, max_steps: int) -> None:
        trial, trainer = self._watched, _as_trainer(self)
        if trial is None or not (trainer.is_world_process_zero() or is_on_every_rank(trial)):
            return
        floor = (trainer.args.lr_scheduler_kwargs or {}).get("min_lr")
        if floor is not None and isinstance(scheduler, LambdaLR):
            keep_floor(scheduler, floor)
        state, self._resumed = own_checkpoint(self._resumed), None
        with at_start(optimizer, state):
            glocal = callback_of(
                trial,
                optimizer,
                self._validation_loss or self._loss_of_first_batches(),
                horizon=max_steps if self._horizon is None else self._horizon,
                **self._arguments,
            )
            if self._bind is not None:
                self._bind(glocal)
        self.glocal = glocal.__enter__()
        if state is not None:
            load_checkpoint(glocal, state)
        if isinstance(glocal, SelfTuning) or self._arguments.get("tune"):
            _tell_of_schedule(trainer.args)
        self._plain_backward = trainer.accelerator.backward
        trainer.accelerator.backward = glocal.routed(trainer.accelerator.backward)

    def _leave(self, error: BaseException | None, *, keeps_best: bool = False) -> None:
        if self._plain_backward is not None and self.glocal is not None:
            self._plain_backward = None
            del _as_trainer(self).accelerator.backward
            self.glocal.__exit__(type(error) if error else None, error, None)
            if keeps_best:
                self.glocal.keep_best()

    def _loss_of_first_batches(self) -> Callable[[], Tensor]:
        trainer, held = _as_trainer(self), list[Any]()
        if trainer.eval_dataset is None or isinstance(trainer.eval_dataset, dict):
            got = "none" if trainer.eval_dataset is None else f"{len(trainer.eval_dataset)}"
            raise ValueError(
                "validation_loss: expected one, or an eval_dataset of the trainer whose first "
                f"batch has it, got {got} of these. Pass validation_loss=."
            )

        def validation_loss() -> Tensor:
            if not held:  # in here, because a data loader draws from torch's random numbers
                held.extend(_first_batches(trainer.get_eval_dataloader()))
            trainer.model.eval()
            examples = sum(count for count, _ in held)
            with trainer.compute_loss_context_manager():
                return sum(  # type: ignore[no-any-return]
                    count
                    / examples
                    * trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch)))
                    for count, batch in held
                )

        return validation_loss


def _first_batches(loader: Any) -> Iterator[tuple[int, Any]]:
    """Batches until they hold :data:`LEAST_EXAMPLES`, each with its number of examples."""
    # Iterating over Accelerate's own wrapper and stopping midway would leave it registered as the
    # data loader in use.
    seen = 0
    for batch in getattr(loader, "base_dataloader", loader):
        count = find_batch_size(batch) or 1
        yield count, batch
        seen += count
        if seen >= LEAST_EXAMPLES:
            return


def _as_trainer(mixed: GlocalTrainerMixin) -> Any:
    return mixed


def _tell_of_schedule(args: Any) -> None:
    """The default schedule, which nobody may have chosen, keeps a run from finding its rate."""
    if getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) == "linear":
        _logger.info(
            "lr_scheduler_type='linear', the trainer's default: under it a self-tuned run stays "
            "near the learning rate that it is given. Under 'constant' it finds its own and lets "
            "it decay at the end."
        )


class GlocalTrainer(GlocalTrainerMixin, Trainer):
    """``transformers.Trainer`` with a trial; see :class:`GlocalTrainerMixin`."""


class _AtBegin(TrainerCallback):
    """Tells when optimizer, scheduler, checkpoint and device are in place."""

    def __init__(self, enter: Callable[[Any, Any, int], None]) -> None:
        self._enter = enter

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Transformers' hook."""
        scheduler = kwargs["lr_scheduler"]  # or accelerate's wrapper around it
        self._enter(
            kwargs["optimizer"], getattr(scheduler, "scheduler", scheduler), state.max_steps
        )
