"""Marks go with memory: to views, not to copies, and away with what was freed or overwritten."""

import pytest
import torch
from torch.nn import Parameter

from optuna_glocal.hypergradient.untraced.marks import Marks


@pytest.fixture
def marks():
    return Marks([Parameter(torch.ones(3))])


def test_weights_are_of_this_step_and_what_has_a_graph_is_not_asked_for(marks):
    (w,) = marks.params.values()
    marks.step = 5
    assert marks.since(w) == 5
    assert marks.since(w * 2) is None and marks.since(torch.ones(3)) is None


def test_views_of_marked_memory_are_marked_and_copies_are_not(marks):
    t = torch.ones(4)
    marks.add(t, 2)
    for view in (t, t[1:], t.view(2, 2), t.detach(), t.t()):
        assert marks.since(view) == 2 and not marks.is_free_of_weights(view)
    assert marks.since(t.clone()) is None and marks.is_free_of_weights(t.clone())


def test_the_newest_mark_counts(marks):
    t = torch.ones(4)
    marks.add(t, 3), marks.add(t[:2], 1)
    assert marks.since(t) == 1


def test_what_is_overwritten_as_a_whole_is_free_and_a_part_is_not_enough(marks):
    t = torch.ones(4)
    marks.add(t, 0)
    marks.clear(t[:2])
    assert marks.since(t) == 0
    marks.clear(t)
    assert marks.since(t) is None
    marks.clear("no tensor")


def test_whole_numbers_are_constant_almost_everywhere(marks):
    t = torch.ones(4, dtype=torch.long)
    marks.add(t, 0)
    assert marks.since(t) is None


def test_sparse_tensors_have_no_memory_to_mark(marks):
    t = torch.eye(3).to_sparse()
    marks.add(t, 0), marks.add(torch.ones(1), 0)
    assert marks.since(t) is None


def test_freed_memory_is_forgotten_and_other_memory_is_not(marks):
    kept, freed = torch.ones(4), torch.ones(1000)
    marks.add_all([kept, freed], 1)
    del freed
    marks.prune()
    assert len(marks._marks) == 1 and marks.since(kept) == 1


def test_another_models_parameter_is_suspect_if_it_is_late_or_written(marks):
    early, written = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    marks.add(torch.ones(1), 0)
    assert marks.since(early) is None and marks.since(written) is None
    marks.learns = False
    with torch.no_grad():
        written.mul_(2)
    late = Parameter(torch.ones(2))
    assert [marks.since(p) for p in (early, written, late)] == [None, 0, 0]
