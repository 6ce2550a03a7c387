"""The laws of every rule: it takes the real optimizer's step, and its Jacobian is the derivative.

A family's test states its cases, ``CASES = {name: (optimizer class, arguments)}``.
"""

import copy
import functools

import oracles
import pytest
import torch

from optuna_glocal.hypergradient.optimizers import (
    GRAD,
    PARAM,
    GenericStep,
    Linear,
    Point,
    group_entries,
    rule_of,
    view_of,
)

P = 6


def stepped(case, steps=3, foreach=None, **changes):
    """A real optimizer after some steps, with gradients for the next."""
    cls, arguments = case
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(P, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = cls([p], **{"lr": 0.05, **arguments, "foreach": foreach, **changes})
    for _ in range(steps):
        p.grad = torch.randn(P, generator=generator, dtype=torch.float64)
        optimizer.step()
    p.grad = torch.randn(P, generator=generator, dtype=torch.float64)
    return optimizer, p


def point_of(optimizer, p):
    state = optimizer.state[p]
    names = rule_of(optimizer).state_names
    return Point(
        param=p.detach().clone(),
        grad=p.grad.clone(),
        state={n: state[n].clone() for n in names if isinstance(state.get(n), torch.Tensor)},
        group=group_entries(optimizer.param_groups[0]),
        step=int(state.get("step", 0)) + 1,
    )


def check_real_step(case, steps, foreach):
    optimizer, p = stepped(case, steps, foreach)
    after = taken(rule_of(optimizer).linearize(point_of(optimizer, p)))
    optimizer.step()
    assert_same(after[PARAM], p.detach())
    for key, value in optimizer.state[p].items():
        if key in after and value is not None:
            assert_same(after[key].expand_as(value), value)


def assert_same(got, expected):
    """But for rounding of the whole tensor, of whose size are the terms of each entry."""
    limit = oracles.rounding(expected.double())  # what torch keeps in float32 is rounded alike
    torch.testing.assert_close(got, expected, rtol=0, atol=limit)


def taken(linear):
    return {name: value() for name, value in linear.after.items()}


def moved(point, direction, entries, e):
    state = {k: v + e * direction[k] for k, v in point.state.items()}
    group = {k: v + e * entries.get(k, 0.0) for k, v in point.group.items()}
    return Point(
        point.param + e * direction[PARAM], point.grad + e * direction[GRAD], state, group,
        point.step,
    )  # fmt: skip


def check_derivative(optimizer, p):
    rule, point = rule_of(optimizer), point_of(optimizer, p)
    generator = torch.Generator().manual_seed(2)
    # torch fills Adagrad's sum with a when it is made: at fixed state nothing depends on it.
    entries = [
        name
        for name in rule.entries
        if point.group[name] != 0 and name != "initial_accumulator_value"
    ]
    names = [PARAM, GRAD, *point.state]
    direction = {n: torch.randn(P, generator=generator, dtype=torch.float64) for n in names}
    # A direction in proportion to the state, or 1e-6 of it would change a young v by half.
    direction |= {n: direction[n] * value for n, value in point.state.items()}
    slopes = {name: 0.1 * point.group[name] for name in entries}
    linear = rule.linearize(point)
    got = linear.jvp(
        {n: z.unsqueeze(0) for n, z in direction.items()},
        {n: torch.tensor([s], dtype=torch.float64) for n, s in slopes.items()},
    )
    e = 1e-6
    ahead = taken(rule.linearize(moved(point, direction, slopes, e)))
    behind = taken(rule.linearize(moved(point, direction, slopes, -e)))
    for output, z in got.items():
        expected = (ahead[output] - behind[output]) / (2 * e)
        noise = oracles.rounding(ahead[output], operations=8) / e
        torch.testing.assert_close(z[0], expected.expand_as(z[0]), rtol=1e-6, atol=noise)


def assert_same_sum(got, terms):
    limit = oracles.rounding(terms)
    torch.testing.assert_close(got.sum(), terms.sum(), rtol=0, atol=limit)


class StepLaws:
    """What holds for every rule; a subclass gives the cases."""

    CASES = {}

    def pytest_generate_tests(self, metafunc):
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.CASES)

    def stepped(self, name, *args, **changes):
        return stepped(self.CASES[name], *args, **changes)

    @pytest.mark.parametrize("foreach", [True, False])
    @pytest.mark.parametrize("steps", [0, 1, 4])
    def test_rule_takes_the_real_step(self, name, steps, foreach):
        check_real_step(self.CASES[name], steps, foreach)

    @pytest.mark.parametrize("steps", [0, 1, 4])
    def test_jvp_is_the_derivative_of_the_step(self, name, steps):
        check_derivative(*self.stepped(name, steps))

    def test_a_weight_that_never_has_a_gradient_keeps_its_tangent(self, name):
        """sqrt(v) has no derivative there, the step does."""
        cls, arguments = self.CASES[name]
        options = {"lr": 0.05, **arguments}
        options.pop("weight_decay", None)
        p = torch.ones(2, requires_grad=True)
        optimizer = cls([p], **options)
        rule = rule_of(optimizer)
        if cls is torch.optim.AdamW:
            options["weight_decay"] = 0.0
            optimizer = cls([p], **options)
        z = {PARAM: torch.tensor([[3.0, 3.0]])}
        for _ in range(4):
            p.grad = torch.tensor([0.0, 1.0])
            point = point_of(optimizer, p)
            entries = {entry: torch.ones(1) for entry in rule.entries if entry != "weight_decay"}
            if cls is torch.optim.ASGD:  # decays without weight decay
                entries = {"lr": torch.ones(1)}
                point.group["lambd"] = 0.0
            z = rule.linearize(point).jvp({**z, GRAD: torch.zeros(1, 2)}, entries)
            assert all(torch.isfinite(value).all() for value in z.values())
            assert z[PARAM][0, 0].item() == 3.0
            optimizer.step()

    def test_vjp_is_the_adjoint_of_jvp(self, name):
        optimizer, p = self.stepped(name)
        linear: Linear = rule_of(optimizer).linearize(point_of(optimizer, p))
        generator = torch.Generator().manual_seed(3)
        v, g = (torch.randn(P, generator=generator, dtype=torch.float64) for _ in range(2))
        zero = {PARAM: torch.zeros(1, P, dtype=torch.float64)}
        by_entry, by_grad = linear.vjp(v, rule_of(optimizer).entries), linear.vjp_grad(v)
        through_g = linear.jvp({**zero, GRAD: g.unsqueeze(0)}, {})[PARAM][0] * v
        assert_same_sum(by_grad * g, through_g)
        for entry in rule_of(optimizer).entries:
            one = {entry: torch.ones(1, dtype=torch.float64)}
            forward = linear.jvp(zero, one)[PARAM][0] * v
            assert_same_sum(by_entry.get(entry, torch.zeros(())), forward)

    @pytest.mark.parametrize("steps", [0, 1, 4])
    def test_jvp_is_the_derivative_of_the_real_step(self, name, steps):
        """Two central differences of ``step`` itself per tangent, on a copy."""
        optimizer, p = self.stepped(name, steps)
        before = copy.deepcopy([p.detach(), p.grad, dict(optimizer.state[p])])
        point, rule = point_of(optimizer, p), rule_of(optimizer)
        generator = torch.Generator().manual_seed(4)
        z = {
            key: torch.randn(2, P, generator=generator, dtype=torch.float64)
            for key in (PARAM, GRAD)
        }
        for key, value in point.state.items():
            # One number per weight on our side, one per tensor on torch's.
            wide = torch.randn(2, *value.shape, generator=generator).reshape(2, -1)
            z[key] = (wide * value.flatten()).expand(2, P)
        entries = {
            e: torch.tensor([0.5, -1.0]) * min(point.group[e], abs(1 - point.group[e]))
            for e in rule.entries
            if e != "initial_accumulator_value"
        }
        exact = rule.linearize(point).jvp(z, entries)
        narrow = {key: z[key][:, : point.state[key].numel()] for key in point.state}
        got = GenericStep(optimizer, 0).jvp([p], {**z, **narrow}, entries)
        for key in set(got) & set(exact):
            wide = got[key].expand_as(exact[key])
            largest = exact[key].abs().max().item()
            torch.testing.assert_close(wide, exact[key], rtol=1e-6, atol=1e-8 * largest)
        now = [p.detach(), p.grad, dict(optimizer.state[p])]
        torch.testing.assert_close(before, now, rtol=0, atol=0)


class InPlaceLaws(StepLaws):
    """What holds for rules that can also advance the tangents in place."""

    @pytest.mark.parametrize("steps", [0, 1, 4])
    def test_advancing_in_place_is_the_jvp(self, name, steps):
        """Whole, and block by block on views of the parameter's own tensors."""
        optimizer, p = self.stepped(name, steps)
        rule, point = rule_of(optimizer), point_of(optimizer, p)
        generator = torch.Generator().manual_seed(5)
        random = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        z = {n: random(2, P) * (n == PARAM or steps > 0) for n in (PARAM, *rule.advanced)}
        dg = random(2, P)
        # In proportion to 1 - beta, by which the step divides: beta2's terms would hide others.
        units = {entry: abs(1 - point.group[entry]) for entry in rule.entries}
        slopes = {
            e: {0: 1.5 * unit, 1: -0.5 * i * unit} for i, (e, unit) in enumerate(units.items())
        }
        entries = {n: torch.tensor([s[0], s[1]], dtype=torch.float64) for n, s in slopes.items()}
        expected = rule.linearize(point).jvp({**z, GRAD: dg}, entries)
        for blocks, at in (
            ([slice(0, P)], point),
            ([slice(0, 2), slice(2, P)], view_of(optimizer, 0, p, rule)),
        ):
            got, g = {n: t.clone() for n, t in z.items()}, dg.clone()
            for b in blocks:
                parts = {n: t[:, b] for n, t in got.items()}
                done = rule.advance(parts, g[:, b], at.block(b), slopes)
                assert done == ("amsgrad" not in name and point.group.get("momentum") != 0)
            if done:
                for n, t in got.items():
                    assert_same(t, expected[n])


class FusedLaws(StepLaws):
    """What holds for optimizers that have a fused implementation."""

    def test_fused_takes_the_same_step(self, name):
        optimizer, p = self.stepped(name, 3, None, fused=True)
        after = taken(rule_of(optimizer).linearize(point_of(optimizer, p)))
        optimizer.step()
        assert_same(after[PARAM], p.detach())


def check_matrix_step(cls, options, shapes, steps):
    """That the exact tangents of a step that mixes entries are those of its differences."""
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    optimizer = cls(params, **options)
    for k in range(steps + 1):
        if k:
            optimizer.step()
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
    width = sum(p.numel() for p in params)
    z = {key: torch.randn(2, width, generator=generator) for key in (PARAM, GRAD)}
    states = [optimizer.state[p] for p in params] if steps else []
    for key in ("row_var", "col_var", "variance", "momentum_buffer"):
        held = [state[key].flatten() for state in states if key in state]
        if held:
            value = torch.cat(held)
            z[key] = torch.randn(2, len(value), generator=generator) * value
    known = group_entries(optimizer.param_groups[0])
    names = ("lr", "momentum", "weight_decay", "beta2_decay", "d", "eps1", "eps2")
    entries = {n: torch.tensor([0.5, -1.0]) * known[n] for n in names if n in known}
    exact = GenericStep(optimizer, 0).jvp(params, z, entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optuna_glocal.hypergradient.optimizers.registry._MATRIX_STEPS", {})
        differences = GenericStep(optimizer, 0).jvp(params, z, entries)
    assert exact.keys() >= {PARAM} and exact.keys() <= differences.keys()
    for key, value in exact.items():
        largest = value.abs().max().item()
        torch.testing.assert_close(value, differences[key], rtol=1e-5, atol=1e-7 * largest)
