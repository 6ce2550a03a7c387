"""Chunks: put together again, or known to be incomplete."""

import json

import pytest

from optuna_glocal.storage.attributes import CHUNK, MOST_CHUNKS, get, put

MYSQLS_TEXT = 65_535


class Trial:
    """A trial that counts its writes."""

    number = 0

    def __init__(self):
        self.attrs, self.writes = {}, 0

    def set_user_attr(self, key, value):
        self.attrs[key] = value
        self.writes += 1


def stored(text):
    trial = Trial()
    put(trial, "k", text)
    return trial


@pytest.mark.parametrize("text", ["", "x", "é" * 9, "x" * CHUNK * 2, '"' * CHUNK * 3])
def test_what_was_put_is_got(text):
    trial = stored(text)
    assert get(trial.attrs, "k") == text
    assert max(len(json.dumps(value)) for value in trial.attrs.values()) <= MYSQLS_TEXT


def test_a_short_text_is_one_write():
    assert stored("x" * CHUNK).writes == 1 and stored("x" * (2 * CHUNK)).writes > 1


@pytest.mark.parametrize("torn", ["missing chunk", "other writer", "no mark"])
def test_torn_chunks_are_ignored(torn):
    attrs = stored("x" * 3 * CHUNK).attrs
    assert get(attrs, "k") == "x" * 3 * CHUNK
    if torn == "missing chunk":
        del attrs["k:1"]
    elif torn == "other writer":
        attrs["k:1"] = "3/deadbeef|" + "y" * CHUNK
    else:
        attrs["k"] = "3/"
    assert get(attrs, "k") in (None, "3/")


def test_a_shorter_second_write_hides_the_first_chunks():
    trial = stored("x" * 3 * CHUNK)
    put(trial, "k", "short")
    assert get(trial.attrs, "k") == "short"


@pytest.mark.parametrize("odd", [None, 3, ["x"], "x" * (CHUNK * MOST_CHUNKS + 1), "9/0|", "²/0|"])
def test_what_put_did_not_write_is_nothing(odd):
    assert get({"k": odd}, "k") is None
    assert get({}, "k") is None
