"""Where a vector ended is stored in bounded size, and read by who trusts nothing."""

import json

import numpy as np
import optuna
import pytest

from optuna_glocal import Vector
from optuna_glocal.storage.learnt_vector import LearntVector, learnt_vectors


def learnt(size, rows=3):
    vector = Vector(size, 1e-3, 1e3)
    values = np.geomspace(1e-3, 1e3, vector.count).reshape(vector.shape)
    quantiles = np.sort(np.random.default_rng(0).random((rows, 5)), axis=1)
    return LearntVector(vector, values, np.arange(rows) * 10, quantiles)


@pytest.fixture
def trial():
    return optuna.create_study().ask()


def test_what_is_written_is_read(trial):
    each = learnt((5, 4))
    each.write(trial, "l2")
    found = learnt_vectors(trial.user_attrs)
    assert list(found) == ["l2"]
    read = found["l2"]
    assert read.vector == each.vector and read.is_whole
    np.testing.assert_allclose(read.values, each.values, rtol=1e-6)
    np.testing.assert_array_equal(read.steps, each.steps)
    np.testing.assert_array_equal(read.quantiles, each.quantiles)


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_its_size_is_bounded(trial, size):
    each = learnt(size, rows=200)
    each.write(trial, "l2")
    texts = [json.dumps(text) for text in trial.user_attrs.values()]
    assert max(map(len, texts)) <= 65_535 and len(texts) <= 4
    read = learnt_vectors(trial.user_attrs)["l2"]
    assert read.is_whole == (size == 10_000)
    # The quantiles of what is kept are those of all.
    shares = [0, 0.1, 0.5, 0.9, 1]
    np.testing.assert_allclose(
        np.quantile(read.values, shares), np.quantile(each.values, shares), rtol=1e-3
    )


@pytest.mark.parametrize("size, ends", [(50, (1, 1)), (2, (1, 1))])
def test_entries_at_the_ends_are_counted(size, ends):
    assert learnt(size).at_ends() == ends


def test_damaged_texts_are_no_vectors(trial):
    learnt(6).write(trial, "l2")
    (text,) = trial.user_attrs.values()
    data = json.loads(text)
    key = "glocal:learnt:l2"
    for broken in (
        text[:-9],
        json.dumps({**data, "v": 2}),
        json.dumps({**data, "values": "AAAA"}),
        json.dumps({**data, "vector": "{}"}),
        json.dumps({**data, "path": "AAAA"}),
        3,
    ):
        assert learnt_vectors({key: broken}) == {}
