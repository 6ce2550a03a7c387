"""Where tuned hyperparameters ended, from attributes that anyone may have written."""

import json

import pytest
from optuna.trial import create_trial

from optuna_glocal import Record, Schedule
from optuna_glocal.storage.final_values import read_final_values
from optuna_glocal.storage.keys import RECORD, SCHEDULE


class Attributes(dict):
    """What ``write`` needs of a trial."""

    number = 0
    set_user_attr = dict.__setitem__


def attributes(tuned=("lr", "omm"), rows=((0.1, 0.1, 0.5), (0.2, 0.05, 0.25)), **ended):
    """As version 0.1 left them, unless ``ended`` says where the hyperparameters ended."""
    trial = Attributes()
    Record(0, 10, 10, "greedy", tuned=tuned, ended=ended).write(trial)
    columns = ["lr", "omm", "momentum of group 0"]
    Schedule([0, 5][: len(rows)], rows, columns, [(0, "lr", "lr")]).write(trial)
    return trial


def read(attrs):
    return read_final_values(create_trial(value=0.0, user_attrs=dict(attrs)))


def test_they_are_the_last_row_of_the_schedule():
    assert read(attributes()) == {"lr": 0.2, "omm": 0.05}
    assert read(attributes(tuned=("omm",))) == {"omm": 0.05}
    assert read(attributes(rows=[(0.1, 0.1, 0.5)])) == {"lr": 0.1, "omm": 0.1}


def test_what_the_record_says_comes_first():
    assert read(attributes(lr=0.4, omm=0.1, other=1.0)) == {"lr": 0.4, "omm": 0.1}
    assert read(attributes(lr=0.4)) == {"lr": 0.2, "omm": 0.05}


def test_without_a_record_of_tuning_there_are_none():
    assert read({}) == {} and read(attributes(tuned=())) == {}
    attrs = attributes()
    del attrs[RECORD]
    assert read(attrs) == {}


@pytest.mark.parametrize(
    "odd", ["{", "[]", "3", '{"columns": 3}', '{"columns": ["lr"], "values": ""}']
)
def test_a_damaged_schedule_tells_nothing(odd):
    assert read({**attributes(), SCHEDULE: odd}) == {}
    cut = json.loads(attributes()[SCHEDULE]) | {"columns": ["lr"]}
    assert read({**attributes(), SCHEDULE: json.dumps(cut)}).keys() <= {"lr"}


def test_a_number_that_is_not_finite_is_left_out():
    assert read(attributes(rows=[(float("nan"), 0.1, 0.5)])) == {"omm": 0.1}


def test_each_is_a_plain_number_of_its_own_for_dashboards():
    attrs = attributes(lr=0.4, omm=float("nan"))
    assert attrs["glocal:final:lr"] == 0.4 and "glocal:final:omm" not in attrs
    assert not any(key.startswith("glocal:final:") for key in attributes())
