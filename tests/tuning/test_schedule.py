"""A schedule survives every form it takes, and refuses what it cannot be."""

import numpy as np
import optuna
import pytest

from optuna_glocal.tuning.schedule import Schedule


def path(n=5):
    rng = np.random.default_rng(0)
    lr = np.exp(rng.normal(size=n))
    return [
        (3 * k, {"lr": lr[k], "omm": 0.1 * k + 0.1}, {(0, "lr"): lr[k],
                                                      (0, "momentum"): 0.9 - 0.1 * k})
        for k in range(n)
    ]  # fmt: skip


def same(a, b):
    assert a == b and hash(a) == hash(b)
    np.testing.assert_array_equal(a.steps, b.steps)
    np.testing.assert_array_equal(a.values, b.values)


def test_schedules_compare_by_what_they_hold():
    a, b = (Schedule.from_path(path()) for _ in range(2))
    assert a == b and len({a, b}) == 1
    others = [
        Schedule.from_path(path(4)),
        Schedule(a.steps + np.arange(5), a.values, a.columns, a.entries, tuned=a.tuned),
        Schedule(a.steps, a.values * 2, a.columns, a.entries, tuned=a.tuned),
        Schedule(a.steps, a.values, a.columns, a.entries, exact=False, tuned=a.tuned),
        Schedule(a.steps, a.values, a.columns, a.entries),
        a.to_dict(),
    ]
    assert all(a != other for other in others)
    assert a in [*others, b]


def test_what_was_tuned_is_said_not_read_off_the_names():
    name = "lr of group 0"
    rows = [(k, {name: 0.1 * (k + 1)}, {(0, "lr"): 0.3 - 0.1 * k}) for k in range(2)]
    schedule = Schedule.from_path(rows)
    assert schedule.tuned == (name,) and len(set(schedule.columns)) == 2
    assert schedule.at(1)[schedule.entries[0][2]] == pytest.approx(0.2)
    assert Schedule.from_path(path()).tuned == ("lr", "omm")
    assert schedule.smooth(1).tuned == schedule.tuned
    same(Schedule.from_dict(schedule.to_dict()), schedule)


def test_a_schedule_stored_before_is_still_read():
    """Then it was told from the names."""
    old = Schedule.from_path(path()).to_dict()
    del old["tuned"]
    same(Schedule.from_dict(old), Schedule.from_path(path()))


def test_from_a_path():
    schedule = Schedule.from_path(path())
    assert schedule.columns == ("lr", "omm", "momentum of group 0")
    assert schedule.entries == ((0, "lr", "lr"), (0, "momentum", "momentum of group 0"))
    assert schedule.at(0)["lr"] == schedule.at(2)["lr"] == path()[0][1]["lr"]
    assert schedule.at(3)["lr"] == path()[1][1]["lr"]
    assert schedule.at(10_000)["momentum of group 0"] == pytest.approx(0.5)
    twice = [path()[0], (path()[1][0], *path()[2][1:]), *path()[1:]]
    same(schedule, Schedule.from_path(twice))


def test_what_the_optimizer_was_built_with_is_kept_where_the_run_began_again():
    again = Schedule.from_path([path()[0], (0, *path()[1][1:]), *path()[2:]])
    assert (
        again.built
        == Schedule.from_path(path()).built
        == tuple(Schedule.from_path(path()).values[0])
    )
    assert again.values[0].tolist() == Schedule.from_path(path()).values[1].tolist()
    same(Schedule.from_dict(again.to_dict()), again)
    assert again.smooth(1).built == again.built
    old = again.to_dict()
    del old["built"]
    assert Schedule.from_dict(old).built == tuple(again.values[0])


@pytest.mark.parametrize("storage", ["memory", "sqlite", "journal"])
def test_storage_keeps_it_exactly(storage, tmp_path):
    backend = {
        "memory": lambda: None,
        "sqlite": lambda: f"sqlite:///{tmp_path}/s.db",
        "journal": lambda: optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "j.log"))
        ),
    }[storage]()
    study = optuna.create_study(storage=backend)
    schedule = Schedule.from_path(path(400))
    trial = study.ask()
    schedule.write(trial)
    study.tell(trial, 1.0)
    same(Schedule.best(study), schedule)
    assert Schedule.from_trial(optuna.trial.create_trial(value=0.0)) is None


def test_long_ones_are_thinned_and_say_so():
    study = optuna.create_study()
    trial = study.ask()
    Schedule.from_path(path(5000)).write(trial)
    kept = Schedule.from_trial(study.tell(trial, 1.0))
    assert not kept.exact and len(kept.steps) < 5000 and kept.steps[-1] == 3 * 4999
    (stored,) = study.trials[0].user_attrs.values()
    assert 50_000 < len(stored) < 65_000


@pytest.mark.parametrize("spoil", ["{", "", "[1]", '{"values": "AAAA"}', 7, None])
def test_a_torn_one_is_none(spoil):
    trial = optuna.trial.create_trial(value=0.0, user_attrs={"glocal:schedule": spoil})
    assert Schedule.from_trial(trial) is None


def test_dict_csv_and_smoothing():
    schedule = Schedule.from_path(path(50))
    same(Schedule.from_dict(schedule.to_dict()), schedule)
    lines = schedule.to_csv().splitlines()
    assert lines[0] == "step,lr,omm,momentum of group 0" and len(lines) == 51
    smooth = schedule.smooth(11)
    assert smooth.values[:, 0].std() < schedule.values[:, 0].std()
    constant = Schedule([0, 5], [[2.0], [2.0]], ["lr"])
    np.testing.assert_allclose(constant.smooth().values, 2.0, rtol=1e-14)
    with pytest.raises(ValueError, match="expected version 1, got 9"):
        Schedule.from_dict({"version": 9})


def test_refusals():
    with pytest.raises(ValueError, match="steps: expected to rise from 0"):
        Schedule([1, 2], [[1.0], [2.0]], ["lr"])
    with pytest.raises(ValueError, match="entries: expected columns among"):
        Schedule([0], [[1.0]], ["lr"], [(0, "momentum", "omm")])
    with pytest.raises(ValueError, match="tuned: expected columns among"):
        Schedule([0], [[1.0]], ["lr"], tuned=["momentum"])


def test_stretched_it_is_in_force_at_the_same_parts_of_a_longer_run():
    schedule = Schedule([0, 3, 10], [[0.1], [0.2], [0.05]], ["lr"], [(0, "lr", "lr")], built=[0.3])
    longer = schedule.stretch(2.0)
    assert all(longer.at(2 * t) == schedule.at(t) == longer.at(2 * t + 1) for t in range(20))
    assert not longer.exact and longer.built == schedule.built
    assert schedule.stretch(0.1).at(1) == {"lr": 0.05}, "of several rows in one step the last"
    for factor in (0, -1.0, float("nan"), float("inf"), "two"):
        with pytest.raises((ValueError, TypeError), match="factor"):
            schedule.stretch(factor)
