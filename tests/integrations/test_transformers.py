"""Door 1 in Hugging Face's real Trainer, on a randomly initialised GPT-2 of one layer."""

import copy

import numpy as np
import optuna
import pytest
import scheduled
import torch
from loops import assert_same_weights, framework

framework("transformers")
framework("accelerate")

import transformers
from hugging_face import NAMES, STEPS, WATCH, fixed, gpt, space, trainer
from torch import nn

from optuna_glocal import GlocalCallback, Observe, Record, Tune
from optuna_glocal.hypergradient.schedulers.huggingface import keep_floor
from optuna_glocal.integrations.transformers import GlocalTrainer, GlocalTrainerMixin
from optuna_glocal.storage.trajectory import read_trajectory

pytestmark = pytest.mark.usefixtures("thawed")


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class Recorder(transformers.Trainer):
    """Keeps what every training step is given."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.given = [*getattr(self, "given", ()), (copy.deepcopy(inputs), num_items_in_batch)]
        return super().training_step(model, inputs, num_items_in_batch)


def plain(folder):
    """Trainer's own batches, optimizer and schedule in a loop of plain torch."""
    recorder = trainer(folder, Recorder, gpt(dropout=0.0))
    recorder.train()
    parts = trainer(folder, transformers.Trainer, gpt(dropout=0.0))
    parts.create_optimizer_and_scheduler(STEPS)
    model, optimizer, scheduler = parts.model, parts.optimizer, parts.lr_scheduler
    held = dict(parts.eval_dataset[0])
    held = {k: torch.stack([row[k] for row in parts.eval_dataset]) for k in held}

    def validation_loss():
        model.eval()
        return parts.compute_loss(model, dict(held))

    with GlocalCallback(fixed(), optimizer, validation_loss, horizon=STEPS, **WATCH) as glocal:
        for i, (inputs, n) in enumerate(recorder.given):
            model.train()
            glocal.backward(parts.compute_loss(model, inputs, num_items_in_batch=n))
            if i % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert_same_weights(recorder.model.state_dict(), model.state_dict())
    return glocal


def test_the_trainer_gives_what_plain_torch_gives(tmp_path):
    ours = trainer(tmp_path, model=gpt(dropout=0.0), trial=fixed(), glocal_arguments=WATCH)
    ours.train()
    got, own = ours.glocal.trajectory, plain(tmp_path).trajectory
    assert got.names == own.names == NAMES and len(got.steps) == 5
    np.testing.assert_array_equal(got.losses, own.losses)
    np.testing.assert_array_equal(got.hypergradients, own.hypergradients)
    assert np.isfinite(got.hypergradients[1:4]).all() and got.hypergradients[1:4].all()
    assert ours.glocal.horizon == STEPS, "read off the trainer"
    assert "backward" not in vars(ours.accelerator)


def test_weights_are_those_without_us(tmp_path):
    with_us = trainer(tmp_path, trial=fixed(), glocal_arguments=WATCH)
    without = trainer(tmp_path, transformers.Trainer)
    with_us.train(), without.train()
    assert_same_weights(with_us.model.state_dict(), without.model.state_dict())
    assert np.isfinite(with_us.glocal.trajectory.hypergradients[1:4]).all()


class PruneTheSecond(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number == 1


def test_hyperparameter_search_leaves_a_record_in_every_trial_pruned_or_not(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    ours = trainer(tmp_path, options={"eval_strategy": "epoch"}, glocal_arguments=WATCH)
    ours.hyperparameter_search(
        space, n_trials=2, direction="minimize", backend="optuna", storage=storage,
        study_name="study", pruner=PruneTheSecond(), sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    done, pruned = optuna.load_study(study_name="study", storage=storage).get_trials()
    assert pruned.state == optuna.trial.TrialState.PRUNED
    for trial, steps in ((done, STEPS), (pruned, 4)):
        record = Record.read(trial)
        assert (record.steps, record.horizon) == (steps, STEPS) and record.value is not None
        assert list(trial.intermediate_values) == list(range(4, steps + 1, 4))
        assert read_trajectory(trial).names == NAMES


def test_a_record_is_written_when_the_trial_fails(tmp_path):
    class Failing(GlocalTrainerMixin, transformers.Trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise RuntimeError("the user's own")
            return super().training_step(*args, **kwargs)

    study = optuna.create_study()
    study.enqueue_trial(fixed().params)
    trial = study.ask()
    space(trial)
    ours = trainer(tmp_path, Failing, trial=trial, glocal_arguments=WATCH)
    with pytest.raises(RuntimeError, match="the user's own"):
        ours.train()
    assert Record.read(study.get_trials()[0]).steps == 3


def test_the_last_loss_is_that_of_the_last_weights_not_of_the_best(tmp_path):
    losses = []

    class Checked(GlocalTrainer):
        def _load_best_model(self):
            super()._load_best_model()
            losses.append(self.glocal.trajectory.losses[-1])

    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    ours = trainer(
        tmp_path, Checked, options=options, trial=fixed(), glocal_arguments=WATCH
    )  # fmt: skip
    ours.train()
    assert losses == [ours.glocal.trajectory.losses[-1]]


def test_what_is_given_is_used_and_without_a_trial_it_is_the_plain_trainer(tmp_path):
    model = gpt()
    tokens = torch.randint(0, 20, (4, 6))
    ours = trainer(
        tmp_path, model=model, trial=fixed(), horizon=100,
        glocal_arguments={"tune": Tune(by="greedy")},
        validation_loss=lambda: model(tokens, labels=tokens).loss,
        bind=lambda glocal: glocal.bind(beta1=lambda: 1.0 * glocal["adam_beta1"]),
    )  # fmt: skip
    ours.train()
    assert ours.glocal.horizon == 100 and "Tuning itself" in ours.glocal.status
    assert ours.glocal.hyperparameters["learning_rate"] != 0.02
    without = trainer(tmp_path)
    without.train()
    assert without.glocal is None


@pytest.mark.parametrize(("data", "got"), [(None, "none"), ({"a": [], "b": []}, "2")])
def test_a_validation_loss_or_one_evaluation_data_set_is_needed(tmp_path, data, got):
    ours = trainer(tmp_path, model=gpt(), trial=fixed())
    ours.eval_dataset = data
    with pytest.raises(ValueError, match=f"got {got} of these. Pass validation_loss=."):
        ours.train()


def floored(name, **kwargs):
    """Hugging Face's own schedule over 12 steps, as the trainer would have it."""

    def make(optimizer, h):
        schedule = transformers.get_scheduler(name, optimizer, 2, STEPS, kwargs)
        if "min_lr" in kwargs:
            keep_floor(schedule, kwargs["min_lr"])
        return schedule

    return make


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cosine_with_min_lr", {"min_lr": 0.1}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.3}),
        ("cosine_warmup_with_min_lr", {"min_lr": 0.1}),
        ("polynomial", {"lr_end": 0.1, "power": 2.0}),
        ("cosine", {}),
    ],
)
def test_schedules_with_a_floor_equal_central_differences(name, kwargs, start):
    h = {"lr": 0.3, "momentum": 0.8}
    scheduled.check(scheduled.sgd, floored(name, **kwargs), h, start=start)


@pytest.mark.parametrize(("rows", "size", "taken"), [(8, 8, 8), (90, 8, 32), (90, 25, 50)])
def test_the_default_validation_loss_is_the_mean_over_32_examples(tmp_path, rows, size, taken):
    ours = trainer(tmp_path, model=gpt(0.0), options={"per_device_eval_batch_size": size})
    ours.eval_dataset = [ours.train_dataset[i % 64] for i in range(rows)]
    held = torch.stack([row["input_ids"] for row in ours.eval_dataset[:taken]])
    with torch.no_grad():
        expected = ours.model(held, labels=held).loss
        got = ours._loss_of_first_batches()()
    torch.testing.assert_close(got, expected)


def test_the_trainer_tells_of_its_floor(tmp_path):
    options = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.01}}

    def run(lr, **arguments):
        ours = trainer(tmp_path, model=gpt(0.0), options={**options, "learning_rate": lr},
                       **arguments)  # fmt: skip
        ours.train()
        return ours

    def loss_at(lr):
        return run(lr)._loss_of_first_batches()().item()

    watch = {"observe": Observe(estimator="global", every=1, tangents=True)}
    got = run(0.02, trial=fixed(), glocal_arguments=watch).glocal.trajectory.hypergradients[-1, 0]
    assert got == pytest.approx((loss_at(0.0202) - loss_at(0.0198)) / 4e-4, rel=2e-3)
