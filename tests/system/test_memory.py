"""What a run that tunes itself keeps of a model of 21 million parameters, beside a plain run."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optuna_glocal import SelfTuning, Tune

WIDTH, LAYERS, STEPS = 2048, 5, 16


class Memory(TorchDispatchMode):
    """Bytes of the large tensors that are made inside and alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self._note(t.untyped_storage())
        return out

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if size > 1_000_000 and key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self._known.discard(key)
        self.now -= size


def peaks(tuned, **options):
    """The most that was alive in each step, in copies of the parameters."""
    layers = [nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.1 / WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.ones(1, WIDTH)

    def loss():
        return (model(x) - x).square().mean()

    size, found = sum(4 * p.numel() for p in model.parameters()), []
    with Memory() as memory:
        tune = Tune(**options)
        run = SelfTuning(optimizer, loss, horizon=STEPS, options=tune, lr=(1e-5, 1.0))
        with run if tuned else torch.enable_grad():
            for _ in range(STEPS):
                memory.peak = memory.now
                optimizer.zero_grad()
                run.backward(loss()) if tuned else loss().backward()
                optimizer.step()
                found.append(memory.peak / size)
    return found


@pytest.fixture(scope="module")
def plain():
    return peaks(tuned=False)


@pytest.mark.parametrize(("average", "first", "later"), [(True, 3, 3), (False, 2, 0)])
def test_copies_are_as_many_as_promised(plain, average, first, later):
    """And what a block of parameters takes for a moment, here two of the five layers."""
    extra = [a - b for a, b in zip(peaks(tuned=True, average=average), plain, strict=True)]
    phase = STEPS // 4
    assert max(extra[:phase]) <= first + 2 / LAYERS + 1e-6
    assert extra[phase - 2] > first - 1
    assert max(extra[phase + 1 :]) == pytest.approx(later, abs=1e-6)
