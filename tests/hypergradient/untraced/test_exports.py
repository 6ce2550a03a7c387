"""What a loop reads out of torch, and what may be it when it comes back."""

from optuna_glocal.hypergradient.untraced.exports import Exports


def test_numbers_count_from_the_first_that_is_read_and_are_compared_with_the_last_step():
    exports = Exports()
    for step in range(3):
        assert not exports.has_changed(0.1 * step)  # nothing was read yet
        exports.note(1)
        assert not exports.has_changed(2.0)
        assert exports.has_changed(3.0 + step) is (step > 0)
        exports.begin_step()


def test_arrays_are_told_by_their_size_until_the_backward():
    exports = Exports()
    exports.note(16)
    assert exports.may_be_back(16) and not exports.may_be_back(1)
    assert not exports.has_changed(1.0)
    exports.forget()
    assert not exports.may_be_back(16)


def test_a_number_of_the_last_step_that_is_logged_does_not_count_and_an_array_does():
    exports = Exports()
    for step in range(2):
        exports.note(1, is_old=True)
        assert not exports.has_changed(0.1 * step)
        exports.begin_step()
    for step in range(2):
        exports.note(4, is_old=True)
        assert exports.has_changed(0.1 * step) is (step > 0)
        exports.begin_step()


def test_a_number_beside_one_that_is_read_now_and_then_is_new_where_it_has_many_digits():
    exports = Exports()
    for step in range(12):
        assert not exports.has_changed(0.123456)
        if step % 3 == 2:
            exports.note(1)
            assert not exports.has_changed(0.123456) and not exports.has_changed(0.5)
            assert exports.has_changed(1.0 + 0.0123456 * step) is (step > 2)
        exports.begin_step()
