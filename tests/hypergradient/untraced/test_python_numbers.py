"""Constants of the author's, and numbers that may come from elsewhere."""

import pytest

from optuna_glocal.hypergradient.untraced.python_numbers import Numbers, is_made_of

ROUND = 0.1


def test_numbers_as_people_write_them_are_constants():
    numbers = Numbers([0.0837465])
    assert numbers.are_constant([0.3, 1e-6, (0.9995, [65536.0])])
    assert not numbers.are_constant([1 - 0.01 * 0.0837465])


def test_after_something_was_read_only_known_ones_and_literals_are():
    numbers = Numbers([0.0837465])
    numbers.are_constant([float("0.3")])
    numbers.have_left = True
    assert numbers.are_constant([float("0.3"), 1.0, 0.4, -0.6])
    assert not numbers.are_constant([float("0.4")])


def test_beside_a_round_value_literals_are_constants():
    numbers = Numbers([ROUND])
    assert numbers.are_constant([0.99, -0.3, 0.01, 1e-6])
    assert numbers.are_constant([float("0.137")])  # in no simple ratio to it


@pytest.mark.parametrize("made", [1 + ROUND, 1 - ROUND / 10, ROUND / 2, -ROUND / 4, ROUND**2])
def test_computed_numbers_are_none_beside_a_round_value(made):
    assert not Numbers([ROUND]).are_constant([made])
    assert Numbers([0.0837465]).are_constant([made])


def test_the_value_itself_is_none_though_it_is_a_literal(thawed):
    numbers = Numbers([ROUND])
    assert not numbers.are_constant([ROUND]) and not numbers.are_constant([-ROUND])
    elsewhere = eval("lambda: 0.1")  # a literal of the same value in another file
    assert numbers.are_constant([elsewhere()])


def test_a_literal_may_change_its_sign():
    def clamps(bound=0.3):
        return Numbers([ROUND]).are_constant([-bound, bound])

    assert clamps() and not clamps(ROUND * 2)


@pytest.mark.parametrize("value", [0.1, 0.0837465])
def test_what_is_made_of_a_value(value):
    for made in (value, 1 + value, 1 - value, 1 / value, 1 / (1 + value), -value):
        assert is_made_of(made * (1 + 1e-7), [0.7, value], 1e-5)
    for made in (0.5, 0.25, 1.0, 2.0, 1 + value / 2):
        assert not is_made_of(made, [value], 1e-5)
