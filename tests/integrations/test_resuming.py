"""Frameworks whose checkpoints carry the callback's state by themselves."""

import csv
import logging

import optuna
import pytest
import torch
from loops import framework
from resumed import Part, Spec, differences, whole
from torch import nn
from torch.nn import functional as F

from optuna_glocal import SelfTuning, Tune
from optuna_glocal.hypergradient.stateful import plain

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(6, 3, generator=torch.Generator().manual_seed(1))).argmax(1)


def differ(a, b):
    return [k for k, v in a.items() if not torch.equal(v, b[k])]


def lightning_run(folder, ckpt_path=None, schedule=None, more=(), logger=False):
    framework("lightning")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from optuna_glocal.integrations.lightning import LightningGlocalCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
            )

        def training_step(self, batch, _):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            return loss + ours.glocal["l2"] * sum(p.square().sum() for p in self.parameters())

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)
            if schedule is None:
                return optimizer
            every_step = {"scheduler": schedule(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": every_step}

    trial = optuna.trial.FixedTrial({"lr": 1e-3, "omm": 0.1, "l2": 1e-4})
    for name in trial._params:
        trial.suggest_float(name, 1e-5, 1.0, log=True)
    module = Module()
    ours = LightningGlocalCallback(
        trial, lambda: F.cross_entropy(module.net(X[:32]), Y[:32]), tune=True,
        bind=lambda glocal: glocal.bind(momentum=lambda: 1 - glocal["omm"]),
    )  # fmt: skip
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keep = ModelCheckpoint(folder, save_on_train_epoch_end=True, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=logger, callbacks=[ours, keep, *more],
        log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(X, Y)
    trainer.fit(module, torch.utils.data.DataLoader(data, 8), ckpt_path=ckpt_path)
    return module.state_dict(), ours.glocal


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_goes_on_from_its_own_checkpoint(tmp_path):
    weights, whole = lightning_run(tmp_path / "a")
    saved = sorted((tmp_path / "a").iterdir())
    assert len(saved) == 6
    for path in (saved[0], saved[3]):  # after one epoch, and in the decay
        torch.load(path, weights_only=True)
        again, resumed = lightning_run(tmp_path / "b", ckpt_path=path)
        assert not differ(weights, again), path
        assert resumed.schedule == whole.schedule
        assert plain(resumed._averages)["recent"]["steps"] == 72


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_s_monitor_logs_the_rate_in_force(tmp_path):
    framework("lightning")
    from lightning.pytorch.callbacks import Callback, LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    used = []

    class Sees(Callback):
        def on_train_start(self, trainer, _):
            optimizer = trainer.optimizers[0]
            optimizer.register_step_post_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))

    logger = CSVLogger(tmp_path)
    lightning_run(
        tmp_path / "a", schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.97),
        more=[Sees(), LearningRateMonitor("step")], logger=logger,
    )  # fmt: skip
    with open(logger.experiment.metrics_file_path) as file:
        logged = [float(row["lr-SGD"]) for row in csv.DictReader(file) if row["lr-SGD"]]
    # The monitor reads before each step, so it sees the step before, decayed by the scheduler.
    assert len(logged) > 5 and min(used) < 2e-3 < max(used)  # it has moved
    assert all(any(abs(rate - 0.97 * u) < 1e-9 * u for u in used) for rate in logged[1:])


def hugging_face_run(folder, resume=None, **options):
    from hugging_face import fixed, gpt, trainer

    options = {"lr_scheduler_type": "cosine", **options}
    ours = trainer(folder, model=gpt(0.1), trial=fixed(), glocal_arguments={"tune": True},
                   options=options)  # fmt: skip
    ours.train(resume_from_checkpoint=resume)
    return ours.model.state_dict(), ours


def test_hugging_face_goes_on_from_its_own_checkpoint(tmp_path):
    framework("transformers")
    framework("accelerate")
    every = {"save_strategy": "steps", "save_steps": 4}
    weights, whole = hugging_face_run(tmp_path, **every)
    for step in (4, 8):
        again, resumed = hugging_face_run(tmp_path, str(tmp_path / f"checkpoint-{step}"), **every)
        assert not differ(weights, again), step
        assert resumed.glocal.schedule == whole.glocal.schedule


@pytest.mark.parametrize("scheduler", ["cosine", "constant"])
def test_hugging_face_logs_the_rate_of_the_step_just_made(tmp_path, scheduler):
    framework("transformers")
    framework("accelerate")
    from hugging_face import fixed, gpt, trainer

    used = []
    ours = trainer(
        tmp_path, model=gpt(0.0), trial=fixed(), options={"lr_scheduler_type": scheduler},
        glocal_arguments={"tune": Tune(by="greedy", every=1)},
    )  # fmt: skip
    ours.args.logging_strategy, ours.args.logging_steps = "steps", 1
    ours.create_optimizer()
    ours.optimizer.register_step_post_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    ours.train()
    logged = [row["learning_rate"] for row in ours.state.log_history if "learning_rate" in row]
    assert len(logged) == 12 and logged == used and len(set(used)) > 2


def accelerate_s(folder, glocal, model, optimizer):
    framework("accelerate")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(glocal)
    return (lambda: accelerator.save_state(folder)), (lambda: accelerator.load_state(folder))


def fabric_s(folder, glocal, model, optimizer):
    framework("lightning")
    from lightning.fabric import Fabric

    fabric, path = Fabric(accelerator="cpu", devices=1), f"{folder}.pt"

    def save():
        fabric.save(path, {"m": model, "o": optimizer, "glocal": glocal.state_dict()})

    def load():
        held = fabric.load(path, {"m": model, "o": optimizer})
        glocal.load_state_dict(held["glocal"])

    return save, load


def ignite_s(folder, glocal, model, optimizer):
    framework("ignite")
    from ignite.handlers import Checkpoint

    objects, path = {"m": model, "o": optimizer, "glocal": glocal}, f"{folder}.pt"

    def save():
        torch.save({name: held.state_dict() for name, held in objects.items()}, path)

    def load():
        Checkpoint.load_objects(objects, torch.load(path, weights_only=True))

    return save, load


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.parametrize("framework_s", [accelerate_s, fabric_s, ignite_s])
def test_what_a_framework_saves_and_loads_goes_on(framework_s, tmp_path):
    spec = Spec(steps=24, l2=True)
    expected = whole(spec, {"tune": True})
    seen, folder, states = [], str(tmp_path / "kept"), torch.get_rng_state()
    for begin, end in ((0, 9), (9, 24)):
        part = Part(spec, {"tune": True})
        with part.glocal as glocal:
            save, load = framework_s(folder, glocal, part.model, part.optimizer)
            if begin:
                load()
                torch.set_rng_state(states)
            seen += part.steps(begin, end)
            if begin:
                left = part.left()
            else:
                save()
                states = torch.get_rng_state()
    assert not differences(expected, (seen, left, part.told()))


@pytest.mark.parametrize("tuned", [{"lr"}, {"lr", "l2"}])
def test_accelerate_goes_on_in_the_middle_of_an_accumulation(tuned, tmp_path):
    """Where the loop keeps the gradients: Accelerate saves its count, but not these."""
    framework("accelerate")
    from accelerate import Accelerator

    def run(begin=0, end=48, folder=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), 1e-3))
        boxes = {"lr": (1e-5, 1.0), "l2": (1e-6, 1e-1)}
        with SelfTuning(
            optimizer, lambda: F.cross_entropy(net(X[:32]), Y[:32]), horizon=16,
            **{name: boxes[name] for name in tuned},
        ) as glocal:  # fmt: skip
            accelerator.register_for_checkpointing(glocal)
            if begin:
                accelerator.load_state(folder)
                for p, grad in zip(net.parameters(), torch.load(folder / "grads"), strict=True):
                    p.grad = grad
            for i in range(begin, end):
                rows = slice(8 * (i % 12), 8 * (i % 12) + 8)
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(X[rows]), Y[rows])
                    if "l2" in tuned:
                        loss = loss + glocal["l2"] * sum(
                            p.square().sum() for p in net.parameters()
                        )
                    glocal.routed(accelerator.backward)(loss)
                    optimizer.step()
                    optimizer.zero_grad()
            if end < 48:
                accelerator.save_state(folder)
                torch.save([p.grad for p in net.parameters()], folder / "grads")
        return [p.detach().clone() for p in net.parameters()], glocal.schedule

    weights, schedule = run()
    assert len({*map(tuple, schedule.values)}) > 3
    for end in (4, 5, 23, 30, 31):  # after one and two parts of three, and between two steps
        run(end=end, folder=tmp_path / str(end))
        again, resumed = run(end, folder=tmp_path / str(end))
        assert all(map(torch.equal, weights, again)) and resumed == schedule, end
