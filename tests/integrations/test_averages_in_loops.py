"""Frameworks whose loop is the user's own: the better of raw and averaged weights, as in torch."""

import pytest
import torch
from averaged import TRAIN, VALID, X, Y, loss_of, net, same, trial, validated
from loops import framework
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Tune

pytestmark = pytest.mark.usefixtures("thawed")


def loader():
    data = torch.utils.data.TensorDataset(X[TRAIN], Y[TRAIN])
    return torch.utils.data.DataLoader(data, 4, generator=torch.Generator())


def own_run(model, optimizer):
    tune = Tune(by="greedy", meta_step=1e-4)
    return GlocalCallback(trial(), optimizer, lambda: loss_of(model), horizon=64, tune=tune)


def evaluated(model, loss=loss_of):
    with torch.no_grad():
        value = loss(model.eval()).item()
    model.train()
    return value


def in_torch(folder):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with own_run(model, optimizer) as glocal:
        for _ in range(2):
            for x, y in loader():
                optimizer.zero_grad()
                glocal.backward(F.mse_loss(model(x), y))
                optimizer.step()
        with glocal.best_weights():
            torch.save(model.state_dict(), folder / "model.pt")
        found = glocal.best_of(lambda: evaluated(model))
        glocal.load_best()
    assert glocal.is_averaged
    return torch.load(folder / "model.pt", weights_only=True), found, model


def in_accelerate(folder):
    framework("accelerate")
    from accelerate import Accelerator
    from safetensors.torch import load_file

    model = net()
    accelerator = Accelerator(cpu=True)
    wrapped, optimizer, batches = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.2), loader()
    )
    with own_run(model, optimizer) as glocal:
        backward = glocal.routed(accelerator.backward)
        for _ in range(2):
            for x, y in batches:
                with accelerator.accumulate(wrapped):
                    optimizer.zero_grad()
                    backward(F.mse_loss(wrapped(x), y))
                    optimizer.step()
        with glocal.best_weights():
            accelerator.save_model(wrapped, folder)
        mean = lambda m: accelerator.gather_for_metrics(loss_of(m)).mean()  # noqa: E731
        found = glocal.best_of(lambda: evaluated(wrapped, mean))
        glocal.load_best()
    return load_file(folder / "model.safetensors"), found, accelerator.unwrap_model(wrapped)


def in_fabric(folder):
    framework("lightning")
    from lightning.fabric import Fabric

    model, fabric = net(), Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.2))
    with own_run(model, optimizer) as glocal:
        backward = glocal.routed(fabric.backward)
        for _ in range(2):
            for x, y in fabric.setup_dataloaders(loader()):
                optimizer.zero_grad()
                backward(F.mse_loss(wrapped(x), y))
                optimizer.step()
        with glocal.best_weights():
            fabric.save(folder / "model.pt", {"model": wrapped})
        mean = lambda m: fabric.all_reduce(loss_of(m))  # noqa: E731
        found = glocal.best_of(lambda: evaluated(wrapped, mean))
        glocal.load_best()
    return torch.load(folder / "model.pt", weights_only=True)["model"], found, model


def in_ignite(folder):
    framework("ignite")
    from ignite.engine import (
        Engine,
        Events,
        create_supervised_evaluator,
        supervised_training_step,
    )
    from ignite.handlers import ModelCheckpoint
    from ignite.metrics import MeanSquaredError

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    validator = create_supervised_evaluator(model, metrics={"mse": MeanSquaredError()})
    keep = ModelCheckpoint(folder, "best", score_name="loss", n_saved=1, require_empty=False,
                           score_function=lambda engine: -engine.state.metrics["mse"])  # fmt: skip
    validator.add_event_handler(Events.COMPLETED, keep, {"model": model})

    def validate():
        return validator.run([(X[VALID], Y[VALID])]).metrics["mse"]

    with own_run(model, optimizer) as glocal:
        trainer = Engine(glocal.routed(supervised_training_step(model, optimizer, F.mse_loss)))

        @trainer.on(Events.COMPLETED)
        def _(engine):
            with glocal.best_weights():
                validate()

        trainer.run(loader(), max_epochs=2)
        saved = torch.load(keep.last_checkpoint, weights_only=True)
        found = glocal.best_of(validate)
        glocal.load_best()
    return saved, found, model


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("run", [in_accelerate, in_fabric, in_ignite])
def test_a_loop_of_the_user_s_own_compares_saves_and_loads_the_better_weights(run, tmp_path):
    (tmp_path / "torch").mkdir()
    kept, found, model = in_torch(tmp_path / "torch")
    saved, others, theirs = run(tmp_path)
    assert others == pytest.approx(found, rel=1e-6)
    assert same(theirs.state_dict(), model.state_dict())
    assert same(saved, kept) and same(kept, model.state_dict())
    assert found == pytest.approx(validated(saved), rel=1e-6)
