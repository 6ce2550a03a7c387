"""Door 1 in the real Lightning: as in plain torch, whatever ends the trial."""

import functools
import logging

import optuna
import pytest
import torch
from loops import EPOCHS, WATCH, Task, assert_as_in_plain_torch, framework, new_trial

framework("lightning")

import lightning.pytorch as pl
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning_module import Module
from optuna_integration import PyTorchLightningPruningCallback

from optuna_glocal import Record, Tune
from optuna_glocal.integrations.lightning import LightningGlocalCallback

# Lightning's own: of its use of torch, and advice on data loaders. Ours stay errors.
pytestmark = [
    pytest.mark.usefixtures("thawed"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings(f"ignore::{PossibleUserWarning.__module__}.PossibleUserWarning"),
]


def fit(trial, *callbacks, accumulate=1, clip=None, watch=True, glocal=None, **module):
    task = Task(trial, accumulate)
    ours = LightningGlocalCallback(trial, task.validation_loss, **{**WATCH, **(glocal or {})})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
        gradient_clip_val=clip, callbacks=[*callbacks, *([ours] if watch else [])],
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(Module(task, **module), task.loader, task.loader)
    return task.weights(), ours.glocal, trainer


@pytest.mark.parametrize(
    ("how", "manually"), [({}, False), ({"accumulate": 2, "clip": 0.05}, False), ({}, True)]
)
def test_lightning_gives_what_plain_torch_gives(how, manually):
    fitted = functools.partial(fit, manually=manually)
    (_, glocal, trainer), own = assert_as_in_plain_torch(fitted, **how)
    assert glocal.horizon == own.horizon, "read off the trainer"
    assert "backward" not in vars(trainer.precision_plugin)


def test_a_trial_tunes_itself():
    _, glocal, _ = fit(new_trial(), glocal={"tune": Tune(by="greedy"), "observe": None})
    assert glocal.hyperparameters["lr"] != 0.02 and "Tuning itself" in glocal.status


def test_hyperparameters_of_other_names_are_bound_before_training():
    trial = optuna.trial.FixedTrial({"omb": 0.1, **new_trial().params})
    trial.suggest_float("omb", 0.01, 1.0)
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.1, log=True)
    _, glocal, _ = fit(trial, glocal={"bind": lambda glocal: glocal.bind(beta1=1 - glocal["omb"])})
    assert set(glocal.trajectory.names) == {"omb", "lr", "weight_decay"}


class AlwaysPrune(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return True


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_record_is_written_when_the_trial_is_pruned(ours_first):
    study = optuna.create_study(pruner=AlwaysPrune())
    trial = new_trial(study)
    task = Task(trial)
    callbacks = [
        LightningGlocalCallback(trial, task.validation_loss, **WATCH),
        PyTorchLightningPruningCallback(trial, "loss"),
    ]
    with pytest.raises(optuna.TrialPruned):
        fit(trial, *callbacks[:: 1 if ours_first else -1], watch=False)
    kept = study.get_trials()[0]
    record = Record.read(kept)
    assert record.steps == 8 and kept.intermediate_values
    assert set(record.gradient) <= {"lr", "weight_decay"} and record.value is not None


def test_a_record_is_written_when_the_trial_fails():
    study = optuna.create_study()
    trial = new_trial(study)
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(trial, fail_at=4)
    assert Record.read(study.get_trials()[0]).steps == 4


def test_what_it_cannot_do_it_says_before_training():
    class Two(Module):
        def configure_optimizers(self):
            return [self.task.optimizer(), self.task.optimizer()]

    trial = new_trial()
    task = Task(trial)
    ours = LightningGlocalCallback(trial, task.validation_loss)
    plainly = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plainly |= {"accelerator": "cpu", "enable_model_summary": False}
    with pytest.raises(ValueError, match="with one optimizer, got 2. Make them groups"):
        trainer = pl.Trainer(max_epochs=1, callbacks=[ours], **plainly)
        trainer.fit(Two(task, manually=True), task.loader)
    with pytest.raises(ValueError, match="a Trainer without an end"):
        trainer = pl.Trainer(max_epochs=-1, callbacks=[ours], **plainly)
        trainer.fit(Module(task), task.loader)
