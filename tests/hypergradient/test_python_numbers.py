"""Constants of the author's, and numbers that may come from elsewhere."""

from optuna_glocal.hypergradient.python_numbers import Numbers


def test_numbers_as_people_write_them_are_constants():
    numbers = Numbers([0.0837465])
    assert numbers.are_constant([0.3, 1e-6, (0.9995, [65536.0])])
    assert not numbers.are_constant([1 - 0.01 * 0.0837465])
    assert not Numbers([0.1]).are_constant([0.999])


def test_after_something_was_read_only_known_ones_are():
    numbers = Numbers([0.0837465])
    numbers.are_constant([0.3])
    numbers.have_left = True
    assert numbers.are_constant([0.3, 1.0]) and not numbers.are_constant([0.4])
