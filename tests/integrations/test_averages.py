"""Frameworks validate, save and leave the better of raw and averaged weights."""

import logging

import optuna
import pytest
import torch
from averaged import TRAIN, VALID, X, Y, loss_of, net, same, trial, validated
from loops import framework
from torch.nn import functional as F

from optuna_glocal import Observe, Tune

EPOCHS = 5

pytestmark = [
    pytest.mark.usefixtures("thawed"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def lightning_fit(folder=None, mode=None, ckpt_path=None, validates=True, how=None, **keep):
    """A fit; the module, the callback, the trainer and the validation losses that it logged."""
    framework("lightning")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from optuna_glocal.integrations.lightning import LightningGlocalCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.logged = net(), []

        def training_step(self, batch, _):
            return F.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("val_loss", F.mse_loss(self.net(batch[0]), batch[1]))

        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                self.logged.append(self.trainer.callback_metrics["val_loss"].item())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.2)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module()
    mode = {"tune": Tune(by="greedy", meta_step=1e-4)} if mode is None else mode
    ours = LightningGlocalCallback(trial(), lambda: loss_of(module.net), **mode)
    saving = []
    if folder is not None:
        keep = {"monitor": "val_loss", "save_top_k": -1, "filename": "{step}", **keep}
        saving = [ModelCheckpoint(folder, **keep)]
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, callbacks=[ours, *saving],
        enable_checkpointing=folder is not None, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=None if validates else 0, **(how or {}),
    )  # fmt: skip
    data = [torch.utils.data.TensorDataset(X[rows], Y[rows]) for rows in (TRAIN, VALID)]
    loaders = [torch.utils.data.DataLoader(data[0], 4), torch.utils.data.DataLoader(data[1], 64)]
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return module, ours, trainer, loaders


def saved(folder):
    """Checkpoints in the order of their steps, and their raw weights where others are in them."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem.split("=")[1]))
    held = [torch.load(path, weights_only=True) for path in paths]
    ours = [[s for k, s in h.get("callbacks", {}).items() if "Glocal" in k] for h in held]
    return paths, held, [o[0]["glocal"]["raw"] if o else None for o in ours]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One fit with checkpoints: where these are, and what the fit has left."""
    folder = tmp_path_factory.mktemp("fit")
    return folder, *lightning_fit(folder)


def test_lightning_monitors_saves_and_leaves_the_better_weights(fitted, tmp_path):
    folder, module, ours, trainer, loaders = fitted
    logged = module.logged[:EPOCHS]
    _, held, raws = saved(folder)
    assert len(held) == EPOCHS and None in raws and raws[-1] is not None
    assert [validated(h["state_dict"]) for h in held] == pytest.approx(logged)
    # At the end as well, and in what the user saves afterwards.
    assert ours.glocal.is_averaged
    assert same(module.state_dict(), held[-1]["state_dict"])
    (told,) = trainer.validate(module, loaders[1], verbose=False)
    assert told["val_loss"] == pytest.approx(logged[-1])
    trainer.save_checkpoint(tmp_path / "step=999.ckpt")
    _, (last,), (raw,) = saved(tmp_path)
    assert raw is not None and same(last["state_dict"], held[-1]["state_dict"])


def test_training_goes_on_from_the_raw_weights(fitted):
    alone, ours, *_ = lightning_fit(validates=False)
    _, held, raws = saved(fitted[0])  # of the run that was validated
    assert all(map(torch.equal, raws[-1], ours.glocal.raw_weights()))
    assert same(alone.state_dict(), held[-1]["state_dict"])


def test_best_of_compares_the_raw_weights_after_the_fit_too():
    module, ours, *_ = lightning_fit(validates=False)
    shown, values = module.state_dict(), []
    shown = {k: v.clone() for k, v in shown.items()}
    raw = [t.clone() for t in ours.glocal.raw_weights()]

    def validate():
        values.append([p.detach().clone() for p in module.parameters()])
        return validated(module.state_dict())

    found = ours.glocal.best_of(validate)
    assert all(map(torch.equal, values[0], raw)) and not torch.equal(values[0][0], values[1][0])
    assert all(map(torch.equal, values[0], module.parameters()))  # left in the model
    ours.glocal.load_best()
    assert validated(module.state_dict()) == found and same(module.state_dict(), shown)


def test_lightning_goes_on_from_a_checkpoint_with_averaged_weights(fitted, tmp_path):
    folder, module, ours, *_ = fitted
    paths, _, raws = saved(folder)
    averaged = [raw is not None for raw in raws]
    for i in (averaged.index(True), averaged.index(False)):
        again, resumed, *_ = lightning_fit(tmp_path / str(i), ckpt_path=paths[i])
        assert same(again.state_dict(), module.state_dict()), i
        assert again.logged == module.logged[i + 1 : EPOCHS]
        assert resumed.glocal.schedule == ours.glocal.schedule


def test_lightning_resumes_under_mixed_precision_accumulation_and_clipping(tmp_path):
    how = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    module, ours, *_ = lightning_fit(tmp_path / "a", {"tune": True}, how=how)
    paths, held, _ = saved(tmp_path / "a")
    assert [validated(h["state_dict"]) for h in held] == pytest.approx(module.logged, rel=0.05)
    again, resumed, *_ = lightning_fit(tmp_path / "b", {"tune": True}, paths[2], how=how)
    assert same(again.state_dict(), module.state_dict()) and again.logged == module.logged[3:]
    assert resumed.glocal.schedule == ours.glocal.schedule


def test_weights_alone_are_the_better_ones_too(fitted, tmp_path):
    lightning_fit(tmp_path, save_weights_only=True)
    for alone, full in zip(saved(tmp_path)[1], saved(fitted[0])[1], strict=True):
        assert same(alone["state_dict"], full["state_dict"]) and "callbacks" not in alone


def test_an_observed_fit_ends_with_its_own_weights():
    kept, ours, *_ = lightning_fit(mode={"observe": Observe(average=True)})
    plain, *_ = lightning_fit(mode={"observe": Observe()})
    assert same(kept.state_dict(), plain.state_dict()) and kept.logged == plain.logged
    assert ours.glocal.is_averaged  # which the record says


def hugging_face_train(folder, resume=None, **options):
    """A trained trainer, and its evaluations by step."""
    framework("transformers")
    framework("accelerate")
    from hugging_face import gpt, trainer

    fixed = optuna.trial.FixedTrial({"learning_rate": 0.3})
    fixed.suggest_float("learning_rate", 1e-4, 1.0, log=True)
    options = {
        "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4, "save_steps": 4,
        "num_train_epochs": 6, "learning_rate": 0.3, "lr_scheduler_type": "constant", **options,
    }  # fmt: skip
    tune = Tune("learning_rate", by="greedy", meta_step=1e-4)
    ours = trainer(
        folder, model=gpt(0.0), trial=fixed, glocal_arguments={"tune": tune}, options=options
    )
    ours.train(resume_from_checkpoint=resume)
    logged = {r["step"]: r["eval_loss"] for r in ours.state.log_history if "eval_loss" in r}
    return ours, logged


def hugging_face_raws(folder, logged):
    """The raw weights in each checkpoint whose model has others."""
    paths = [folder / f"checkpoint-{step}" / "glocal.pt" for step in logged]
    return [torch.load(path, weights_only=True)["raw"] for path in paths]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return folder, *hugging_face_train(folder, load_best_model_at_end=True)


def test_hugging_face_evaluates_saves_and_loads_the_better_weights(trained):
    folder, ours, logged = trained
    raws = hugging_face_raws(folder, logged)
    assert None in raws and any(raw is not None for raw in raws)
    best = min(logged, key=logged.get)
    assert raws[list(logged).index(best)] is not None
    assert ours.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert ours.evaluate()["eval_loss"] == pytest.approx(logged[best])
    for step, value in logged.items():
        ours.model = type(ours.model).from_pretrained(folder / f"checkpoint-{step}")
        assert ours.evaluate()["eval_loss"] == pytest.approx(value, rel=1e-6)


def test_hugging_face_goes_on_from_a_checkpoint_with_averaged_weights(tmp_path):
    ours, logged = hugging_face_train(tmp_path, num_train_epochs=5)
    raws = hugging_face_raws(tmp_path, logged)
    # Without load_best_model_at_end the model has the better ones of the last step.
    assert raws[-1] is not None and ours.glocal.is_averaged
    last = type(ours.model).from_pretrained(tmp_path / "checkpoint-20")
    assert same(dict(ours.model.named_parameters()), dict(last.named_parameters()))
    assert raws[1] is not None
    resume = str(tmp_path / "checkpoint-8")
    again, relogged = hugging_face_train(tmp_path, resume, num_train_epochs=5)
    assert relogged == logged and again.glocal.schedule == ours.glocal.schedule
    assert same(dict(again.model.named_parameters()), dict(ours.model.named_parameters()))
