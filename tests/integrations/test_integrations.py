"""The frameworks that need no class: as in plain torch, the framework's own backward routed."""

import contextlib
import importlib
import sys

import optuna
import pytest
import torch
from loops import EPOCHS, WATCH, Task, assert_as_in_plain_torch, framework, new_trial
from torch import nn

from optuna_glocal import GlocalCallback, Record

# Ignite imports torch.distributed.optim, in which torch uses what it deprecates.
pytestmark = [
    pytest.mark.usefixtures("thawed"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_framework_is_named_with_the_line_that_installs_it(monkeypatch, name):
    for part in {name, *(m for m in sys.modules if m.startswith(f"{name}."))}:
        monkeypatch.setitem(sys.modules, part, None)
    monkeypatch.delitem(sys.modules, f"optuna_glocal.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'optuna_glocal\[{name}\]'"):
        importlib.import_module(f"optuna_glocal.integrations.{name}")


def watched(trial, task, optimizer, watch):
    """The callback, or nothing; and what routes a function through it."""
    if not watch:
        return contextlib.nullcontext(), lambda function: function
    glocal = GlocalCallback(trial, optimizer, task.validation_loss, horizon=task.steps, **WATCH)
    return glocal, glocal.routed


def in_accelerate(trial, accumulate=1, clip=None, watch=True):
    framework("accelerate")
    from accelerate import Accelerator

    task = Task(trial, accumulate)
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
    model, optimizer, loader = accelerator.prepare(task.model, task.optimizer(), task.loader)
    scheduler = accelerator.prepare(task.scheduler(optimizer))  # on accelerate's own wrapper
    glocal, routed = watched(trial, task, optimizer, watch)
    with glocal:
        torch.manual_seed(1)
        for _ in range(EPOCHS):
            for batch in loader:
                with accelerator.accumulate(model):
                    task.model.train()
                    routed(accelerator.backward)(task.loss(batch))
                    if clip and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), clip)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
    return task.weights(), glocal


def in_fabric(trial, accumulate=1, clip=None, watch=True):
    framework("lightning")
    from lightning.fabric import Fabric

    task = Task(trial, accumulate)
    fabric = Fabric(accelerator="cpu", devices=1)
    raw = task.optimizer()
    scheduler = task.scheduler(raw)
    model, optimizer = fabric.setup(task.model, raw)
    glocal, routed = watched(trial, task, optimizer, watch)
    with glocal:
        torch.manual_seed(1)
        for _ in range(EPOCHS):
            for i, (x, y) in enumerate(fabric.setup_dataloaders(task.loader)):
                task.model.train()
                loss = nn.functional.cross_entropy(model(x), y) / accumulate
                routed(fabric.backward)(loss)
                if (i + 1) % accumulate == 0:
                    if clip:
                        fabric.clip_gradients(model, optimizer, max_norm=clip)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
    return task.weights(), glocal


def in_ignite(trial, accumulate=1, clip=None, watch=True, after_epoch=None):
    framework("ignite")
    from ignite.engine import Engine, Events, supervised_training_step

    task = Task(trial, accumulate)
    optimizer = task.optimizer()
    scheduler = task.scheduler(optimizer)

    def clipping(*_):
        nn.utils.clip_grad_norm_(task.model.parameters(), clip)

    if clip:  # ignite's own update has no other place for it
        optimizer.register_step_pre_hook(clipping)
    update = supervised_training_step(
        task.model, optimizer, nn.functional.cross_entropy, gradient_accumulation_steps=accumulate
    )
    glocal, routed = watched(trial, task, optimizer, watch)
    with glocal:
        engine = Engine(routed(update))
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(every=accumulate), lambda _: scheduler.step()
        )
        if after_epoch:
            engine.add_event_handler(Events.EPOCH_COMPLETED, after_epoch(engine))
        torch.manual_seed(1)
        engine.run(task.loader, max_epochs=EPOCHS)
    return task.weights(), glocal


@pytest.mark.parametrize("how", [{}, {"accumulate": 2, "clip": 0.05}])
@pytest.mark.parametrize("framework_s", [in_accelerate, in_fabric, in_ignite])
def test_a_framework_gives_what_plain_torch_gives(framework_s, how):
    assert_as_in_plain_torch(framework_s, **how)


class AlwaysPrune(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return True


def test_ignite_s_pruning_handler_leaves_a_record():
    framework("ignite")
    from optuna_integration import PyTorchIgnitePruningHandler

    study = optuna.create_study(pruner=AlwaysPrune())
    trial = new_trial(study)

    def after_epoch(engine):
        engine.state.metrics["loss"] = 1.0
        return PyTorchIgnitePruningHandler(trial, "loss", engine)

    with pytest.raises(optuna.TrialPruned):
        in_ignite(trial, after_epoch=after_epoch)
    kept = study.get_trials()[0]
    assert kept.intermediate_values == {1: 1.0} and Record.read(kept).steps == 8
