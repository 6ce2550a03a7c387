"""The default tuner where large models are trained: precisions, compilers, kernels, memory, reads.

The rates in force are compared with those of a plain loop in float32 as far as the arithmetic is
the same; where it is not, with what its rounding explains.
"""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from optuna_glocal import SelfTuning

STEPS, ADAMW, SGD = 120, {"lr": 3e-3}, {"lr": 0.05, "momentum": 0.9}


class Loop:
    """A small classification run; ``h`` are the optimizer's arguments."""

    def __init__(self, optimizer=torch.optim.AdamW, dtype=torch.float32, **h):
        g = self.generator = torch.Generator().manual_seed(0)
        centres = torch.randn(3, 6, generator=g)
        self.y, self.yv = (torch.randint(0, 3, (n,), generator=g) for n in (300, 200))
        self.x, self.xv = (
            (centres[y] + torch.randn(len(y), 6, generator=g)).to(dtype) for y in (self.y, self.yv)
        )
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)
        self.start = float((h or ADAMW)["lr"])
        self.optimizer = optimizer(self.model.parameters(), **(h or ADAMW))
        self.rates = []

    def forward(self, x):
        return self.model(x)

    def loss(self, chosen):
        return functional.cross_entropy(self.forward(self.x[chosen]).float(), self.y[chosen])

    def value(self):
        return functional.cross_entropy(self.forward(self.xv).float(), self.yv)

    def step(self):
        self.optimizer.step()

    def note(self, optimizer, *_):
        rate = optimizer.param_groups[0]["lr"]
        self.rates.append(rate.clone() if isinstance(rate, torch.Tensor) else rate)

    def run(self, parts=1, scaler=None, steps=STEPS, around=None):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tuned = SelfTuning(self.optimizer, self.value, horizon=steps, lr=(1e-5, 10.0))
            with tuned:
                self.optimizer.register_step_pre_hook(self.note)
                for t in range(steps):
                    chosen = torch.randint(0, 300, (32,), generator=self.generator)
                    with around(t) if around else warnings.catch_warnings():
                        self.optimizer.zero_grad()
                        for part in chosen.chunk(parts):
                            loss = self.loss(part) / parts
                            tuned.backward(scaler.scale(loss) if scaler else loss)
                        if scaler:
                            scaler.step(self.optimizer)
                            scaler.update()
                        else:
                            self.step()
                self.best = tuned.best_of(lambda: self.value().item())
        self.rates = [float(rate) for rate in self.rates]
        self.said = [str(w.message) for w in said if "optuna_glocal" in str(w.filename)]
        assert "Tuning itself: lr" in tuned.status and not self.said
        assert 100 * self.rates[0] < self.start < 20 * max(self.rates)
        assert all(torch.isfinite(p).all() for p in self.model.parameters())
        return self


class Autocast(Loop):
    dtype = torch.bfloat16

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return self.model(x)


class Half(Autocast):
    dtype = torch.float16


class Checkpointed(Loop):
    def forward(self, x):
        hidden = checkpoint(lambda t: self.model[1](self.model[0](t)), x, use_reentrant=False)
        return self.model[2](hidden)


class CompiledModel(Loop):
    def __init__(self, **h):
        super().__init__(**h)
        self.compiled = torch.compile(self.model, backend="eager")

    def forward(self, x):
        return self.compiled(x)


class CompiledStep(Loop):
    def __init__(self, **h):
        super().__init__(**h)
        self.step = torch.compile(self.optimizer.step, backend="eager")


@pytest.fixture(scope="module")
def plain():
    return {"adamw": Loop().run(), "sgd": Loop(torch.optim.SGD, **SGD).run()}


def farthest(loop, plain):
    """|Δ log lr| of the step where the two differ most."""
    pairs = zip(loop.rates, plain.rates, strict=True)
    return max(abs(math.log(a / b)) for a, b in pairs)


def tensor_rate(**h):
    return {"lr": torch.tensor(3e-3), "foreach": False, **h}


@pytest.mark.parametrize(
    ("make", "options", "limit"),
    [
        (lambda: Loop(**ADAMW, foreach=True), {}, 1e-6),
        (lambda: Loop(**ADAMW, fused=True), {}, 1e-5),
        (lambda: Loop(**tensor_rate()), {}, 1e-5),
        (Loop, {"parts": 4}, 1e-5),
        (Checkpointed, {}, 1e-6),
        (CompiledModel, {}, 1e-5),
        (lambda: CompiledStep(**tensor_rate()), {}, 1e-4),
        (Autocast, {}, 0.01),
        (lambda: Half(), {"scaler": 2.0**12}, 0.002),
        (lambda: Half(**ADAMW, fused=True), {"scaler": 2.0**12}, 0.002),
    ],
    ids=[
        "foreach", "fused", "tensor rate", "accumulated", "checkpointed", "compiled model",
        "compiled step", "bfloat16 autocast", "float16 with a scaler", "the same, fused",
    ],
)  # fmt: skip
def test_the_path_is_the_plain_one_up_to_rounding(plain, make, options, limit):
    if "scaler" in options:
        options = {"scaler": torch.amp.GradScaler("cpu", init_scale=options["scaler"])}
    loop = make().run(**options)
    assert farthest(loop, plain["adamw"]) < limit
    assert loop.best == pytest.approx(plain["adamw"].best, rel=max(limit, 1e-4))


def test_fused_sgd_has_the_path_of_sgd(plain):
    loop = Loop(torch.optim.SGD, **SGD, fused=True).run()
    assert farthest(loop, plain["sgd"]) < 1e-5


def test_weights_in_bfloat16_end_at_a_rate_like_that_of_float32():
    """A step of them is rounded to 1/256 of a weight, which is what the slopes are made of."""
    loop, plain = (Loop(dtype=d).run(steps=240) for d in (torch.bfloat16, torch.float32))
    assert max(loop.rates) == pytest.approx(max(plain.rates), rel=0.2)
    assert loop.best < 1.1 * plain.best


@pytest.mark.parametrize("interval", [5, 2000])
def test_a_scaler_that_looks_for_its_factor_does_not_mislead(plain, interval):
    """It leaves out the first steps, or doubles its factor every few steps."""
    first = 16.0 if interval == 5 else 2.0**24
    scaler = torch.amp.GradScaler("cpu", init_scale=first, growth_interval=interval)
    loop = Half().run(scaler=scaler)
    assert len(loop.rates) < STEPS, "some steps were left out"
    assert loop.best < 1.1 * plain["adamw"].best
    assert loop.rates[60] == pytest.approx(plain["adamw"].rates[60], rel=0.3)


class Reads(TorchDispatchMode):
    """Counts numbers read from tensors: each would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        ):
            self.count += 1
        return function(*args, **(kwargs or {}))


def reads_of(make, **options):
    counts = {}

    class Around(Reads):
        def __init__(self, t):
            super().__init__()
            self.t = t

        def __exit__(self, *details):
            counts[self.t] = self.count
            return super().__exit__(*details)

    make().run(around=Around, **options)
    return counts


@pytest.mark.parametrize("fused", [False, True])
def test_numbers_are_read_where_something_is_decided_only(fused):
    """Every step of the first 64, every fourth of the first quarter, every fifth afterwards.

    A fused optimizer, like those on a GPU, keeps its count of steps in tensors and reads nothing.
    """
    h, steps = {**ADAMW, "fused": fused}, 400
    counts = reads_of(lambda: Loop(**h), steps=steps)
    bare = Loop(**h)
    own = {}
    for t in range(8):
        with Reads() as reads:
            bare.optimizer.zero_grad()
            bare.loss(torch.arange(32)).backward()
            bare.step()
        own[t] = reads.count
    extra = {t: count - own[min(t, 7)] for t, count in counts.items()}
    seen = {t for t, count in extra.items() if count}
    dense = set(range(1, 65))
    sparse = {t for t in range(65, 100) if t % 4 == 0}
    looks = {t for t in range(steps) if t % 5 == 0}
    assert looks - {0} <= seen <= dense | sparse | looks, sorted(seen - dense - sparse - looks)
    # One of each loss since the last look, and three of the param group's changes.
    assert all(extra[t] <= 8 for t in seen)
