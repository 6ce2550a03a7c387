"""State as plain tensors and numbers."""

import torch

from optuna_glocal.hypergradient.stateful import Stateful, plain


class Inner(Stateful):
    _state = ("n",)

    def __init__(self, n=0):
        self.n = n


class Outer(Stateful):
    _state = ("_inner", "_many", "_by_name", "_names", "_tensor", "_tensors", "_row", "_none")

    def __init__(self, n=0):
        self._inner, self._many = Inner(n), [Inner(n), Inner(n + 1)]
        self._by_name, self._names = {"a": Inner(n)}, {"b", "c"} if n else set()
        self._tensor, self._tensors = torch.full((2,), float(n)), [torch.ones(3) * n]
        self._row, self._none = [(n, {"x": torch.tensor(n)})], None


def test_what_is_kept_is_restored_into_what_is_there():
    old, new = Outer(5), Outer()
    inner, tensor, listed = new._many[1], new._tensor, new._tensors[0]
    new.load_state_dict(old.state_dict())
    assert new._inner.n == 5 and new._by_name["a"].n == 5 and new._names == {"b", "c"}
    assert new._many[1] is inner and inner.n == 6, "the object itself, which others may refer to"
    assert new._tensor is tensor and tensor.tolist() == [5, 5], "and its memory"
    assert new._tensors[0] is listed and listed.tolist() == [5, 5, 5]
    assert new._row[0][1]["x"].item() == 5 and new._none is None


def test_it_is_a_copy():
    old = Outer(5)
    state = old.state_dict()
    old._tensor.fill_(9), old._row[0][1]["x"].fill_(9)
    assert state["tensor"].tolist() == [5, 5] and state["row"][0][1]["x"].item() == 5
    assert plain({"a": (torch.ones(2, requires_grad=True),)})["a"][0].requires_grad is False
