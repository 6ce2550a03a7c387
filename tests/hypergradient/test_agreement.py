"""What several processes agree on, with the other ranks played by a list of their messages."""

import math

import pytest
import torch

from optuna_glocal.hypergradient.agreement import PARTED, Agreement
from optuna_glocal.hypergradient.errors import TangentError


class Two:
    """Two ranks; the other one's messages are given. ``sent`` are those of this one."""

    size, is_sharded, is_first = 2, False, True

    def __init__(self, *others):
        self._others, self.sent = list(others), []

    def sums(self, values):
        self.sent.append([float(v) for v in values])
        other = self._others.pop(0)
        other = [*other, *[0.0] * (len(values) - len(other))]
        return [a + b for a, b in zip(self.sent[-1], other, strict=True)]

    def means(self, values):
        return [total / 2 for total in self.sums(values)]

    def all_agree(self, still):
        return self.sums([float(not still)]) == [0.0]


def tensors(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def test_one_process_has_its_own_numbers():
    agreement = Agreement()
    third = 1 / 3
    assert agreement.is_alone and agreement.is_first and not agreement.is_sharded
    assert agreement.numbers(lambda: tensors(third), lambda: tensors(2.0)) == [third, 2.0]
    assert agreement.numbers(lambda: [third]) == [third] == agreement.mean([third])
    assert agreement.numbers(list) == []
    assert agreement.by_name(lambda: {"lr": third, "x": 1.0}, {"lr"}) == {"lr": third, "x": 1.0}
    assert agreement.shares([torch.ones(1)]) is None and agreement.are_same(1, "a")
    v = [None, torch.ones(2)]
    assert agreement.averaged(v, []) is v
    agreement.part()


def test_losses_are_averaged_and_parts_added():
    ranks = Two([0, 5.0, 4.0, 0.25])
    found = Agreement(ranks).numbers(lambda: tensors(1.0, 2.0), lambda: tensors(0.5))
    assert found == [3.0, 3.0, 0.75]


def test_messages_are_of_one_length_however_many_numbers_there_are():
    for count in (0, 1, 31, 32, 70):
        values = [float(i) for i in range(count)]
        parts = [values[i : i + 31] for i in range(0, max(1, count), 31)]
        ranks = Two(*[[0, *part] for part in parts])
        assert Agreement(ranks).numbers(lambda own=values: own) == values
        assert {len(message) for message in ranks.sent} == {32}


def test_a_notice_of_another_rank_ends_it_and_is_not_answered():
    ranks = Two([1])
    agreement = Agreement(ranks)
    with pytest.raises(TangentError, match=PARTED):
        agreement.numbers(lambda: tensors(1.0))
    agreement.part()
    assert len(ranks.sent) == 1


def test_a_rank_that_cannot_make_its_numbers_gives_notice_once():
    ranks = Two([0, 5.0])
    agreement = Agreement(ranks)
    with pytest.raises(ZeroDivisionError):
        agreement.numbers(lambda: [1 / 0])
    agreement.part()
    assert ranks.sent == [[1.0] + [0.0] * 31]


def test_a_hypergradient_that_one_rank_lacks_is_left_out():
    ranks = Two([0, 3.0, math.nan])
    found = Agreement(ranks).by_name(lambda: {"b": 1.0, "a": 1.0, "c": 9.0}, {"a", "b"})
    assert found == {"a": 2.0}


def test_facts_are_compared_as_printed():
    fingerprint = []
    Agreement(Recorder(fingerprint)).are_same({"lr": 0.1}, 100)
    same, other = Two(fingerprint, [0.0]), Two([fingerprint[0] + 1], [0.0])
    assert Agreement(same).are_same({"lr": 0.1}, 100)
    assert not Agreement(other).are_same({"lr": 0.1}, 100)


class Recorder(Two):
    """Keeps the numbers that it is asked the mean of."""

    def __init__(self, kept):
        super().__init__([0.0])
        self._kept = kept

    def means(self, values):
        self._kept += values
        return list(values)


def test_who_does_not_arrive_is_named():
    class Half(Two):
        members = (0, 1)

        def arrive(self, place):
            return lambda seconds: {0: ""}

    with pytest.raises(RuntimeError, match="best_of: expected a call on every process.* rank 1 "):
        Agreement(Half()).arrive("best_of")()
    Agreement().arrive("best_of")()


def test_processes_join():
    agreement = Agreement()
    agreement.join(Two([0, 3.0]))
    assert not agreement.is_alone and agreement.numbers(lambda: [1.0]) == [2.0]
