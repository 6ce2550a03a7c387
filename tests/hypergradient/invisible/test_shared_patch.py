"""The last of several users puts back what was replaced; kinds do not count each other's."""

import pytest

from optuna_glocal.hypergradient.invisible.shared_patch import SharedPatch


@pytest.fixture
def kinds():
    def kind_of(place):
        class Patch(SharedPatch):
            @staticmethod
            def _replace():
                now[place] = "ours"

            @staticmethod
            def _put_back():
                now[place] = "torch's"

        return Patch

    now = ["torch's", "torch's"]
    return now, kind_of(0), kind_of(1)


def test_the_last_one_puts_back(kinds):
    now, kind, _ = kinds
    first, second = kind(), kind()
    first.remove(), first.remove()
    assert now[0] == "ours"
    second.remove()
    assert now[0] == "torch's"


def test_each_kind_counts_its_own(kinds):
    now, one, other = kinds
    patch, _ = one(), other()
    patch.remove()
    assert now == ["torch's", "ours"]


def test_removing_one_leaves_what_was_put_there_meanwhile(kinds):
    now, kind, _ = kinds
    first, _ = kind(), kind()
    now[0] = "the user's"
    first.remove()
    assert now[0] == "the user's"
