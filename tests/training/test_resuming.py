"""What a resumed run takes over, and what it refuses."""

import io

import optuna
import pytest
import torch
from resumed import Part, Spec, differences, whole

from optuna_glocal import GlocalCallback, Observe, Record, SelfTuning, Tune
from optuna_glocal.storage.keys import RECORD

TUNE = {"tune": True}
WATCH = {"observe": Observe(window=12, every=2, tangents=True)}
SPEC = Spec(steps=24)


def saved_at(step, spec=SPEC, tune=TUNE, trial=None):
    part = Part(spec, tune, trial)
    with part.glocal:
        part.steps(0, step)
        return part.saved()


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(k, (str, int, tuple)) and plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))


@pytest.mark.parametrize("tune", [TUNE, {"tune": Tune(by="greedy")}, WATCH])
def test_the_state_is_plain_and_a_copy(tune):
    part = Part(SPEC, tune)
    with part.glocal:
        part.steps(0, 5)
        state = part.glocal.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        part.steps(5, 12)
    file.seek(0)
    assert plain(state) and not differences(state, torch.load(file, weights_only=True))


def test_loading_draws_no_random_numbers_and_shows_where_the_run_stands():
    held = saved_at(9)
    part = Part(SPEC, TUNE)
    with part.glocal as glocal:
        part.load(held)
        states = torch.get_rng_state()
        glocal.load_state_dict(glocal.state_dict())
        assert torch.equal(torch.get_rng_state(), states)
        assert glocal.hyperparameters == held["glocal"]["bindings"]["values"]
        assert glocal.schedule is not None and glocal.hyperparameters["lr"] != SPEC.lr


@pytest.mark.parametrize(
    ("spec", "tune", "said"),
    [
        (Spec(steps=30), TUNE, "same horizon as this one, 30, got 24"),
        (SPEC, {"tune": Tune(by="greedy")}, "same tuner as this one, greedy, got blend"),
        (SPEC, WATCH, "same tuner as this one, none, it observes, got blend"),
        (SPEC, {"tune": Tune(every=3)}, "same options every as this one, 3, got None"),
        (Spec(steps=24, l2=True), TUNE, r"same hyperparameters as this one, \['l2'"),
        (Spec(steps=24, lr=0.02), TUNE, "same start lr as this one, 0.02, got 0.01"),
        (Spec(steps=24, optimizer="adamw"), TUNE, "same optimizer as this one, AdamW, got SGD"),
        (Spec(steps=24, normalized=True), TUNE, r"shape of parameter 2\) as this one, \[8\], got"),
        (Spec(steps=24, groups=2), TUNE, r"\(parameters by group\) as this one, \[2, 2\], got"),
    ],
)
def test_another_run_s_state_is_refused_with_what_differs(spec, tune, said):
    held = saved_at(5)["glocal"]
    part = Part(spec, tune)
    with part.glocal as glocal, pytest.raises(ValueError, match=said):
        glocal.load_state_dict(held)


def test_what_is_no_state_and_what_comes_too_late_are_refused():
    part = Part(SPEC, TUNE)
    with pytest.raises(ValueError, match="expected inside the with block, got before it"):
        part.glocal.state_dict()
    with part.glocal as glocal:
        state = glocal.state_dict()
        for other in (None, [1], {"version": 7}):
            with pytest.raises(ValueError, match="expected what state_dict"):
                glocal.load_state_dict(other)
        part.steps(0, 1)
        with pytest.raises(ValueError, match="before the first backward, got a call after"):
            glocal.load_state_dict(state)
    with pytest.raises(ValueError, match="inside the with block.*got a call outside"):
        Part(SPEC, TUNE).glocal.load_state_dict(state)


def test_a_binding_that_is_forgotten_is_named():
    spec = Spec(steps=24, binds=True)
    held = saved_at(5, spec)["glocal"]
    part = Part(spec, TUNE)
    forgot = GlocalCallback(part.trial, part.optimizer, part.validation, horizon=24, tune=True)
    with forgot, pytest.raises(ValueError, match=r"'momentum of param group 0'\] to be bound"):
        forgot.load_state_dict(held)


def test_an_observed_run_says_that_its_tangents_end_and_keeps_what_it_saw():
    held = saved_at(6, tune=WATCH)
    part = Part(SPEC, WATCH)
    with pytest.warns(RuntimeWarning, match="resumed at step 6"), part.glocal as glocal:
        part.load(held)
        part.steps(6, 24)
    assert "resumed at step 6 of the window's 12" in glocal.status
    record = Record.from_json(part.trial.user_attrs[RECORD])
    assert "resumed at step 6" in record.status and record.steps == 24
    told, seen = whole(SPEC, WATCH)[2], glocal.trajectory.hypergradients[:4].tolist()
    assert not differences(told["h"][:4], seen)


def retried(study, trial):
    """The trial that repeats one whose worker died, as Optuna's retries make it."""
    attrs = {"failed_trial": trial.number}
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING, params=trial.params,
            distributions=trial.distributions, user_attrs=trial.user_attrs,
            system_attrs={**attrs, "fixed_params": trial.params},
        )
    )  # fmt: skip
    return study.ask()


@pytest.mark.parametrize("tune", [TUNE, WATCH])
def test_a_trial_is_resumed_as_another(tune):
    study = optuna.create_study()
    study.enqueue_trial({"lr": SPEC.lr, "weight_decay": 1e-3})
    first = study.ask()
    held = saved_at(14, tune=tune, trial=first)
    study.tell(first, state=optuna.trial.TrialState.FAIL)
    second = retried(study, study.trials[0])
    part = Part(SPEC, tune, second)
    with part.glocal:
        part.load(held)
        part.steps(14, 24)
        part.left()
    kept, told = study.trials[1], whole(SPEC, tune)[2]
    record = Record.read(kept)
    assert record is not None and record.number == 1 and record.steps == 24
    assert (
        record.gradient == told["record"]["gradient"] and record.value == told["record"]["value"]
    )
    assert part.told()["schedule"] == told["schedule"]


def test_parts_of_one_trial_leave_the_record_of_the_whole():
    study = optuna.create_study()
    study.enqueue_trial({"lr": SPEC.lr, "weight_decay": 1e-3})
    trial = study.ask()
    held = saved_at(14, tune=WATCH, trial=trial)
    assert Record.read(study.trials[0]).steps == 14
    part = Part(SPEC, WATCH, trial)
    with part.glocal:
        part.load(held)
        part.steps(14, 24)
        part.left()
    record, told = Record.read(study.trials[0]), whole(SPEC, WATCH)[2]["record"]
    assert (record.steps, record.callbacks) == (24, 1)
    assert record.gradient == told["gradient"] and record.value == told["value"]


def one_run(optimizer, p, begin, end, held=None):
    with SelfTuning(optimizer, lambda: (p**2).sum(), horizon=40, lr=(1e-3, 0.5)) as run:
        if held is not None:
            run.load_state_dict(held)
        for _ in range(begin, end):
            optimizer.zero_grad()
            run.backward((p**2).sum())
            optimizer.step()
        return run.state_dict()


def test_one_run_without_a_study_goes_on_though_its_rate_has_left_the_box():
    def fresh():
        p = torch.ones(3, requires_grad=True)
        return p, torch.optim.SGD([p], lr=0.01)

    p, optimizer = fresh()
    one_run(optimizer, p, 0, 40)
    q, first = fresh()
    held = one_run(first, q, 0, 39)
    weights, states = q.detach().clone(), first.state_dict()
    states["param_groups"][0]["lr"] = first.param_groups[0]["lr"]
    q, second = fresh()
    q.data.copy_(weights)
    second.load_state_dict(states)
    second.state[q] = {"momentum_buffer": None}
    one_run(second, q, 39, 40, held)
    assert torch.equal(p, q)
