"""What must hold of every training loop: watching changes nothing, no number given is wrong.

``check(spec)`` runs a loop plain, watched and self-tuned, and central differences of the plain one
at two step sizes. Its verdict is data: what differs, which numbers are wrong, what was refused.
"""

import contextlib
import dataclasses
import math
import random
import re
import warnings

import numpy as np
import torch
from training_loop import Loop, default_dtype

# Relative steps of the differences, and what they may be off.
STEP, SMOOTH, WRONG = 1e-4, 1e-4, 1e-4
ROUNDING = 1e-13


@dataclasses.dataclass
class Verdict:
    """What came of one loop.

    Attributes:
        spec: The loop.
        problems: One line each; none is as it should be.
        is_possible: Whether torch runs the plain loop at all.
        is_differentiable: Whether differences at two step sizes agree.
        is_given: Whether a hypergradient was given.
        status: The callback's sentence, without its numbers.
        left_out: Hyperparameters that matter and have no hypergradient although others have.
        tuned: What became of the self-tuned runs.
    """

    spec: object
    problems: list[str] = dataclasses.field(default_factory=list)
    is_possible: bool = True
    is_differentiable: bool = False
    is_given: bool = False
    status: str = ""
    left_out: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()


def check(spec, tuned=("blend", "greedy")):
    """All that must hold of one loop."""
    verdict = Verdict(spec)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            plain = Loop(spec).run()
        except Exception as error:
            verdict.is_possible, verdict.status = False, f"{type(error).__name__}: {error}"[:100]
            return verdict
        watched = watch(spec, plain, verdict)
        if watched is not None and has_slopes(spec, plain):
            compare_numbers(spec, watched, verdict)
        for by in tuned:
            tune(spec, by, plain, verdict)
    return verdict


def watch(spec, plain, verdict):
    try:
        watched = Loop(spec, "watched", horizon=plain.made).run()
    except Exception as error:
        verdict.problems.append(f"watched: raised {type(error).__name__}: {error}"[:300])
        return None
    found = next(differences(plain.trace, watched.trace), None)
    if found is not None:
        verdict.problems.append(f"watched: {found}")
    glocal = watched.glocal
    verdict.status = re.sub(r"[-+]?\d[\d.e+-]*", "#", glocal.status)
    verdict.is_given = bool(glocal.forecast().gradient)
    if "A fault of" in glocal.status:
        verdict.problems.append(f"fault: {glocal.status}")
    return watched


def differences(plain, watched):
    """Every difference between two runs, the earliest first."""
    if len(plain) != len(watched):
        yield f"{len(watched)} steps for {len(plain)}"
    for t, (a, b) in enumerate(zip(plain, watched, strict=False)):
        for name in a:
            if not same(a[name], b[name]):
                yield f"{name} differ in step {t}"


def same(a, b):
    """Bit for bit, where NaN is NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.is_sparse and b.is_sparse:
            a, b = a.to_dense(), b.to_dense()
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and (torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def has_slopes(spec, plain):
    """Whether differences of the run are what hypergradients must be.

    Not in single precision; not with Muon, which orthogonalizes in bfloat16 whatever is given;
    not where validation reads running averages, which count as constants (README), or draws
    random numbers, which are other ones in every evaluation; not of a run that is resumed: its
    first steps, before the callback is there, depend on the hyperparameters too, and no tangents
    of them are part of what was saved.
    """
    averages = any(getattr(m, "track_running_stats", False) for m in plain.validated.modules())
    is_exempt = averages and spec.validation == "eval"
    return (
        spec.precision == "float64"
        and spec.optimizer != "Muon"
        and not is_exempt
        and is_finite(plain)
        and validates_alike(plain)
        and "resumed" not in spec.habits
    )


def validates_alike(loop):
    with default_dtype(torch.float64), torch.no_grad():
        return loop.validation().item() == loop.validation().item()


def is_finite(loop):
    return all(bool(torch.isfinite(p).all()) for p in loop.trace[-1]["weights"])


# -- numbers --------------------------------------------------------------------------------------


def compare_numbers(spec, watched, verdict):
    """The recorded hypergradients beside central differences of the whole run.

    At first along one direction in which all that is given weighs alike; only where that is wrong,
    or where a name is missing, one by one.
    """
    trajectory = watched.glocal.trajectory
    given = dict(zip(trajectory.names, trajectory.hypergradients.T, strict=True))
    direction = balanced(spec.values, given)
    slopes = Slopes.of(spec, direction)
    if slopes is None:
        return
    verdict.is_differentiable = bool(slopes.matters and not slopes.is_rough[-1])
    if not given:
        return
    told = sum(given[name] * spec.values[name] * direction[name] for name in given)
    if wrong_at_both_steps(spec, direction, trajectory.steps, told):
        said = {}
        for name in given:
            h = given[name] * spec.values[name]
            said[name] = wrong_at_both_steps(spec, {name: 1.0}, trajectory.steps, h)
        if not any(said.values()):
            said = {f"along {direction}": slopes.wrong(trajectory.steps, told)}
        status = watched.glocal.status
        verdict.problems += [f"wrong: {name} {at}; {status}" for name, at in said.items() if at]
    if verdict.is_given:
        missing = [name for name in spec.values if name not in given]
        alone = [(name, Slopes.of(spec, {name: 1.0})) for name in missing]
        verdict.left_out = tuple(n for n, s in alone if s and s.matters and not s.is_rough[-1])


def wrong_at_both_steps(spec, direction, steps, told):
    """In words, where differences contradict; also those of far smaller steps.

    The two step sizes of one comparison agree although there is a kink, if it is close enough.
    """
    for step in (STEP, STEP / 30):
        slopes = Slopes.of(spec, direction, step)
        at = slopes and slopes.wrong(steps, told)
        if not at:
            return None
    return at


def balanced(values, given):
    """Relative steps by hyperparameter, such that each changes the loss by about as much."""
    if not given:
        return dict.fromkeys(values, 1.0)
    size = {name: abs(h[-1] * values[name]) for name, h in given.items()}
    known = [s for s in size.values() if 0 < s < math.inf]
    least = min(known, default=1.0)
    signs = (1.0, -1.0, 1.0, 1.0, -1.0)
    weights = (max(least / s, 0.01) if 0 < s < math.inf else 1.0 for s in size.values())
    return {name: signs[i % 5] * w for i, (name, w) in enumerate(zip(size, weights, strict=True))}


@dataclasses.dataclass
class Slopes:
    """Richardson's central differences of the validation loss after every step.

    Attributes:
        values: By step, of the derivative by a common relative change.
        apart: How far those of the two step sizes are apart.
        noise: What rounding may do to them.
    """

    values: np.ndarray
    apart: np.ndarray
    noise: float

    @classmethod
    def of(cls, spec, direction, step=STEP):
        def losses(d):
            moved = {name: 1 + d * step * w for name, w in direction.items()}
            values = {name: v * moved.get(name, 1.0) for name, v in spec.values.items()}
            return np.array(validation_losses(spec, values))

        runs = [losses(d) for d in (1, -1, 2, -2)]
        length = min(map(len, runs))
        a, b, c, d = (run[:length] for run in runs)
        if not length or not np.isfinite([a, b, c, d]).all():
            return None
        near, far = (a - b) / (2 * step), (c - d) / (4 * step)
        noise = ROUNDING * max(1.0, np.abs(a).max()) / step
        return cls((4 * near - far) / 3, np.abs(near - far), noise)

    @property
    def scale(self):
        return np.abs(self.values).max()

    @property
    def matters(self):
        return self.scale > 100 * self.noise

    @property
    def is_rough(self):
        """By step, whether there is a kink between, or chaos."""
        return self.apart > SMOOTH * self.scale + 10 * self.noise

    def wrong(self, steps, told):
        """Where the numbers told are not the slopes, in words; ``None`` if nowhere."""
        for t, h in zip(steps, told, strict=True):
            if not 0 < t <= len(self.values) or not math.isfinite(h) or self.is_rough[t - 1]:
                continue
            slope, apart = self.values[t - 1], self.apart[t - 1]
            allowed = WRONG * abs(slope) + WRONG / 10 * self.scale + 3 * apart + 10 * self.noise
            if abs(h - slope) > allowed:
                return f"at step {t} is {h:.8g}, differences say {slope:.8g} (± {allowed:.1g})"
        return None


def validation_losses(spec, values):
    losses = {}

    def measure(loop):
        with untouched(loop):
            losses[loop.last] = loop.validation().item()

    Loop(spec, values=values, each=measure).run()
    return list(losses.values())


@contextlib.contextmanager
def untouched(loop):
    """Weights, buffers, modes and random states are as before."""
    nets = {id(net): net for net in (loop.model, loop.validated)}.values()
    states = [(net, {k: v.clone() for k, v in net.state_dict().items()}) for net in nets]
    modes = [(m, m.training) for net in nets for m in net.modules()]
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(before[0]), np.random.set_state(before[1]), random.setstate(before[2])
        with torch.no_grad():
            for net, state in states:
                for key, value in net.state_dict().items():
                    value.copy_(state[key])
        for module, mode in modes:
            module.training = mode


# -- self-tuning ----------------------------------------------------------------------------------


def tune(spec, by, plain, verdict):
    """A self-tuned run never raises, ends finite, and leaves random states and modes alone."""
    try:
        loop = Loop(spec, by, horizon=plain.made).run()
    except ValueError as error:
        if str(error).startswith("tune:"):
            verdict.tuned += ("refused",)
            return
        verdict.problems.append(f"{by}: raised ValueError: {error}"[:300])
        return
    except Exception as error:
        verdict.problems.append(f"{by}: raised {type(error).__name__}: {error}"[:300])
        return
    verdict.tuned += (re.sub(r"[-+]?\d[\d.e+-]*", "#", loop.glocal.status),)
    if is_finite(plain) and not is_finite(loop):
        verdict.problems.append(f"{by}: weights are not finite; {loop.glocal.status}")
    for name in ("torch's random state", "numpy's random state", "python's random state",
                 "flags", "requires_grad", "hooks"):  # fmt: skip
        before, after = plain.trace[-1][name], loop.trace[-1][name]
        if not same(before, after):
            verdict.problems.append(f"{by}: {name} differ at the end")
