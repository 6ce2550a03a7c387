"""A stored schedule, read without torch."""

from optuna.trial import create_trial

from optuna_glocal import Schedule
from optuna_glocal.storage.keys import SCHEDULE
from optuna_glocal.storage.moved_path import read_moved_path


class Attributes(dict):
    number = 0
    set_user_attr = dict.__setitem__


def test_it_is_what_the_schedule_has_written():
    attrs = Attributes()
    schedule = Schedule([0, 3, 9], [[0.1, 1.0], [0.2, 1.5], [0.05, 2.0]], ["lr", "l2"])
    schedule.write(attrs)
    path = read_moved_path(create_trial(value=0.0, user_attrs=attrs))
    assert path.columns == schedule.columns and path.steps.tolist() == [0, 3, 9]
    assert path.values.tolist() == schedule.values.tolist()


def test_what_is_damaged_is_none():
    for text in (
        "{",
        "3",
        '{"columns": ["lr"], "values": "AAAA"}',
        '{"columns": [], "values": ""}',
    ):
        assert read_moved_path(create_trial(value=0.0, user_attrs={SCHEDULE: text})) is None
    assert read_moved_path(create_trial(value=0.0)) is None
