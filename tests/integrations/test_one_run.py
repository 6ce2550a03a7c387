"""In a framework, boxes in place of a trial are one run without a study: SelfTuning's."""

import logging

import pytest
import torch
from loops import EPOCHS, Task, framework, new_trial

from optuna_glocal import Observe, SelfTuning, Tune

pytestmark = [
    pytest.mark.usefixtures("thawed"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
BOXES = {"lr": (1e-4, 1.0)}
GREEDY = Tune(by="greedy", every=2)


def fit(trial, **arguments):
    framework("lightning")
    import lightning.pytorch as pl
    from lightning_module import Module

    from optuna_glocal.integrations.lightning import LightningGlocalCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    task = Task(new_trial())
    ours = LightningGlocalCallback(trial, task.validation_loss, **arguments)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[ours],
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(Module(task), task.loader)
    return torch.nn.utils.parameters_to_vector(task.model.parameters()), ours.glocal


def train(folder, trial, **arguments):
    framework("transformers")
    from hugging_face import fixed, trainer

    made = trainer(folder, trial=fixed() if trial is None else trial, glocal_arguments=arguments)
    made.train()
    return torch.nn.utils.parameters_to_vector(made.model.parameters()), made.glocal


def test_lightning_does_with_boxes_what_it_does_with_a_trial():
    weights, run = fit(BOXES, tune=GREEDY)
    theirs, glocal = fit(new_trial(), tune=Tune(("lr",), by="greedy", every=2))
    assert isinstance(run, SelfTuning) and run.hyperparameters["lr"] != 0.02
    assert run.hyperparameters["lr"] == glocal.hyperparameters["lr"]
    assert torch.equal(weights, theirs)


def test_so_does_hugging_face(tmp_path):
    weights, run = train(tmp_path, BOXES, tune=GREEDY)
    theirs, glocal = train(tmp_path, None, tune=Tune(("learning_rate",), by="greedy", every=2))
    assert isinstance(run, SelfTuning) and run.hyperparameters["lr"] != 0.02
    assert run.hyperparameters["lr"] == glocal.hyperparameters["learning_rate"]
    assert torch.equal(weights, theirs)


def test_a_run_without_a_study_tunes_by_default_and_observes_never():
    _, run = fit(BOXES)
    assert isinstance(run, SelfTuning) and run.schedule is not None
    with pytest.raises(TypeError, match="give a trial to observe one"):
        fit(BOXES, observe=Observe())
    with pytest.raises(TypeError, match="got tune=False"):
        fit(BOXES, tune=False)


def test_under_hugging_face_s_constant_schedule_the_run_finds_its_own_rate(tmp_path, caplog):
    framework("transformers")
    from hugging_face import gpt, trainer

    paths = {}
    for chosen in ("constant", "linear"):
        made = trainer(
            tmp_path,
            model=gpt(0.0),
            trial=BOXES,
            options={"lr_scheduler_type": chosen, "num_train_epochs": 9},
        )
        with caplog.at_level("INFO", "optuna_glocal"):
            caplog.clear()
            made.train()
        assert ("stays near the learning rate" in caplog.text) == (chosen == "linear")
        paths[chosen] = made.glocal.schedule.values[:, 0]
    # As without a scheduler: from far below the given rate, and at the end to nearly nothing.
    assert paths["constant"][0] < 0.01 and paths["constant"][-1] < 0.5 * max(paths["constant"])
    assert paths["linear"][0] == pytest.approx(0.02)
