"""Sentences for the user."""

import pytest

from optuna_glocal.hypergradient.errors import (
    ScheduleError,
    TangentError,
    undifferentiable,
    words,
)


@pytest.mark.parametrize("kind", [TangentError, ScheduleError])
def test_our_own_sentences_are_shown_as_they_are(kind):
    assert words(kind("Training is chaotic here.")) == "Training is chaotic here."


def test_other_errors_are_shown_with_their_type_and_first_line():
    assert words(ValueError("no such shape\nat line 3")) == "ValueError: no such shape"


def test_a_remedy_is_named_where_one_is_known():
    assert "SDPBackend.MATH" in undifferentiable(RuntimeError("no derivative of attention"))
    assert "SDPBackend" not in undifferentiable(RuntimeError("no derivative"))
