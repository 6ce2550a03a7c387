"""What depends on the weights without a graph is refused; what only looks like it is exact."""

import copy

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn, overrides
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient.loop_arithmetic.shadows import Shadows
from optuna_glocal.hypergradient.untraced.following import Following

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("double_precision"),
]

STEPS, H = 12, {"lr": 0.3, "momentum": 0.8}


def mlp():
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def nothing(kept, net, t):
    """After a step."""


class Loop:
    """A training loop; ``kept`` is what it carries from step to step.

    Args:
        loss: ``loss(kept, net, x, y, t)``.
        first: Makes ``kept`` of the network.
        after: Called after each step.
        judged: The model that is validated.
    """

    def __init__(self, loss, first=lambda net: {}, after=nothing, judged=None, make=mlp):
        self.loss, self.first, self.after, self.make = loss, first, after, make
        self.judged = judged or (lambda kept, net: net)

    def run(self, h, watch=False):
        """All losses and the validation loss, and the callback."""
        torch.manual_seed(0)
        x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
        net = self.make()
        kept, losses = self.first(net), []
        optimizer = torch.optim.SGD(net.parameters(), **h)

        def validate():
            return F.cross_entropy(self.judged(kept, net)(x[32:]), y[32:])

        def train(backward):
            for t in range(STEPS):
                rows = torch.randint(0, 32, (16,))
                optimizer.zero_grad()
                loss = self.loss(kept, net, x[rows], y[rows], t)
                backward(loss)
                losses.append(loss.item())
                optimizer.step()
                self.after(kept, net, t)

        glocal = None
        if watch:
            trial = FixedTrial(h)
            trial.suggest_float("lr", 1e-4, 10.0), trial.suggest_float("momentum", 0.0, 0.999)
            observe = Observe(tangents=True, estimator="global")
            with GlocalCallback(
                trial, optimizer, validate, horizon=STEPS, observe=observe
            ) as glocal:
                train(glocal.backward)
        else:
            train(lambda loss: loss.backward())
        return [*losses, validate().item()], glocal


def difference(loop, name):
    """Richardson's central difference of the whole run."""

    def central(e):
        ahead, behind = (loop.run({**H, name: H[name] * (1 + d)})[0][-1] for d in (e, -e))
        return (ahead - behind) / (2 * e * H[name])

    return (4 * central(1e-4) - central(2e-4)) / 3


def assert_refused(loop, sentence):
    losses, glocal = loop.run(H, watch=True)
    assert sentence in glocal.status
    assert not glocal.trajectory.names
    assert losses == loop.run(H)[0]


def plain(kept, net, x, y, t):
    return F.cross_entropy(net(x), y)


# -- what is refused ------------------------------------------------------------------------------


def averages(kept, net, t):
    with torch.no_grad():
        for a, b in zip(kept["mean"].parameters(), net.parameters(), strict=True):
            a.lerp_(b, 0.3)


def taught(kept, net, x, y, t):
    return plain(kept, net, x, y, t) + F.mse_loss(net(x), kept["mean"](x).detach())


def taught_late(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    if t < 6:
        return loss
    kept.setdefault("mean", copy.deepcopy(net))
    averages(kept, net, t)
    with torch.no_grad():
        target = kept["mean"](x)
    return loss + F.mse_loss(net(x), target)


def taught_by_a_copy(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    if t == 6:
        kept["copy"] = copy.deepcopy(net)
    return loss + F.mse_loss(net(x), kept["copy"](x).detach()) if t > 6 else loss


def rewritten(kept, net, t):
    if t == 6:
        kept["copy"].load_state_dict(net.state_dict())


def distilled(kept, net, x, y, t):
    with torch.no_grad():
        target = kept["copy"](x)
    return plain(kept, net, x, y, t) + F.mse_loss(net(x), target)


def taught_for_a_while(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    return loss + F.mse_loss(net(x), net(x + 0.1).detach()) if t == 7 else loss


def held_near(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    if t == 6:
        kept["old"] = [p.detach().clone() for p in net.parameters()]
    pairs = zip(net.parameters(), kept.get("old", ()), strict=False)
    return loss + sum((p - old).square().sum() for p, old in pairs)


def pseudo_labels(kept, net, x, y, t):
    return plain(kept, net, x, y, t) + F.cross_entropy(net(x + 0.1), net(x).detach().softmax(1))


def hidden_state(kept, net, x, y, t):
    out = net(x) + 0.5 * kept.get("h", torch.zeros(16, 4))
    kept["h"] = torch.tanh(out).detach()
    return F.cross_entropy(out, y)


def hidden_in_place(kept, net, x, y, t):
    out = net(x) + 0.5 * kept.get("h", torch.zeros(16, 4))
    kept["h"] = torch.tanh(out)
    kept["h"].detach_()
    return F.cross_entropy(out, y)


def memory(kept, net, x, y, t):
    bank = kept.setdefault("bank", torch.zeros(8, 4))
    out = net(x)
    loss = F.cross_entropy(out, y) + 0.1 * (out @ bank.clone().T).square().mean()
    bank[t % 8] = out.detach().mean(0)
    return loss


def focal(kept, net, x, y, t):
    out = net(x)
    p = out.detach().softmax(1).gather(1, y[:, None])[:, 0]
    return ((1 - p) ** 2 * F.cross_entropy(out, y, reduction="none")).mean()


def balanced(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    return loss / loss.item() + 0.1 * loss


def straight_through(kept, net, x, y, t):
    out = net(x)
    return F.cross_entropy(out + (torch.tanh(2 * out) - out).detach(), y)


def hard_choice(kept, net, x, y, t):
    return F.mse_loss(F.gumbel_softmax(net(x), hard=True), F.one_hot(y, 4).double())


def with_data(kept, net, x, y, t):
    return plain(kept, net, x, y, t) + sum((p * p.data).sum() for p in net.parameters())


def adversary(kept, net, x, y, t):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(plain(kept, net, x, y, t), x)
    return plain(kept, net, (x + 0.1 * grad / grad.norm()).detach(), y, t)


def spectral():
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 12)), nn.Tanh(), nn.Linear(12, 4)
    )


def copied(net):
    return {"mean": copy.deepcopy(net), "copy": copy.deepcopy(net)}


def weighted_by_a_number(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    return loss * (1 + loss.item())


def over_a_running_mean(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    kept["mean"] = 0.9 * kept.get("mean", 1.0) + 0.1 * loss.item()
    return loss / kept["mean"]


def weighted_in_numpy(kept, net, x, y, t):
    losses = F.cross_entropy(net(x), y, reduction="none")
    return (losses * torch.as_tensor(1 + losses.detach().numpy())).mean()


def over_a_norm_of_numpy(kept, net, x, y, t):
    out = net(x)
    return F.cross_entropy(out / float(np.linalg.norm(out.detach().numpy())), y)


def penalized(make_norm):
    """A gradient penalty, whose tangent takes torch's third derivative."""

    def loss(kept, net, x, y, t):
        x = x.clone().requires_grad_()
        value = plain(kept, net, x, y, t)
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        return value + grad.pow(2).sum()

    return Loop(
        loss,
        make=lambda: nn.Sequential(nn.Linear(8, 12), make_norm(), nn.Tanh(), nn.Linear(12, 4)),
    )


def one_and_the_rate(kept, net, x, y, t):
    return (1 + H["lr"]) * plain(kept, net, x, y, t)


def by_the_rate(kept, net, x, y, t):
    out = net(x)
    return F.cross_entropy(out, y) + float(repr(H["lr"])) * out.square().mean()


def by_a_product(kept, net, x, y, t):
    out = net(x)
    return F.cross_entropy(out, y) + out.square().mean() * (H["lr"] * H["momentum"])


MADE = {
    "tensor": lambda x, loss: torch.tensor(x) * loss,
    "in double precision": lambda x, loss: loss * torch.tensor(x, dtype=torch.float64),
    "as_tensor": lambda x, loss: torch.as_tensor(x).mul(loss),
    "new_tensor": lambda x, loss: loss.new_tensor(x) * loss,
    "full": lambda x, loss: torch.full((3, 3), x).mean() * loss,
    "full, by name": lambda x, loss: torch.full((), fill_value=x) * loss,
    "full_like": lambda x, loss: torch.full_like(loss, x) * loss,
    "new_full": lambda x, loss: loss.new_full((2,), x).sum() * loss,
    "scalar_tensor": lambda x, loss: torch.scalar_tensor(x) * loss,
    "a list": lambda x, loss: (torch.tensor([1.0, x]) * loss).sum(),
    "filled": lambda x, loss: torch.empty(()).fill_(x) * loss,
    "computed on": lambda x, loss: (1 + torch.tensor(x - 1)) * loss,
    "moved": lambda x, loss: torch.tensor([x]).to(torch.float64)[0] * loss,
}


@pytest.mark.parametrize("how", MADE)
def test_a_tensor_made_of_a_number_of_a_hyperparameter_is_refused(how):
    def loss(kept, net, x, y, t):
        return MADE[how](1 + H["lr"], plain(kept, net, x, y, t))

    assert_refused(Loop(loss), "write glocal[name] in place of the number")


@pytest.mark.parametrize("how", sorted({*MADE} - {"computed on"}))
def test_a_tensor_made_of_a_literal_is_a_constant_though_a_hyperparameter_is_alike(how):
    def loss(kept, net, x, y, t):
        return MADE[how](1.3, plain(kept, net, x, y, t))  # 1 + lr

    assert Loop(loss).run(H, watch=True)[1].trajectory.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_made_before_the_training_is_told_by_its_value(monkeypatch, dtype):
    monkeypatch.setitem(H, "lr", 0.2837465)
    weight = torch.tensor([1.0, 1 + H["lr"]], dtype=dtype)

    def loss(kept, net, x, y, t):
        return (plain(kept, net, x, y, t) * weight).sum()

    def other(kept, net, x, y, t):
        return (plain(kept, net, x, y, t) * scale).sum()

    scale = torch.tensor([1.0, 1.2837], dtype=dtype)
    assert_refused(Loop(loss), "write glocal[name] in place of the number")
    assert Loop(other).run(H, watch=True)[1].trajectory.names


def test_a_tensor_made_of_what_was_read_from_a_loss_is_refused():
    def loss(kept, net, x, y, t):
        value = plain(kept, net, x, y, t)
        return value * torch.full((3,), value.item()).sum()

    assert_refused(Loop(loss), "has no graph")


def test_a_number_in_a_tensor_that_is_only_logged_changes_nothing():
    def loss(kept, net, x, y, t):
        kept["log"] = torch.tensor([1 + H["lr"]]) * 2
        return plain(kept, net, x, y, t)

    assert Loop(loss).run(H, watch=True)[1].trajectory.names


def test_a_number_is_found_where_the_run_ends_before_it_is_looked_for(monkeypatch):
    monkeypatch.setitem(globals(), "STEPS", 2)
    assert_refused(Loop(one_and_the_rate), "write glocal[name] in place of the number")


@pytest.mark.parametrize("loss", [one_and_the_rate, by_the_rate, by_a_product])
def test_a_number_computed_from_a_hyperparameter_is_refused(loss):
    assert_refused(Loop(loss), "write glocal[name] in place of the number")


IN_LOSS = {
    "weighted by a number": Loop(weighted_by_a_number),
    "over a running mean": Loop(over_a_running_mean),
    "weighted in numpy": Loop(weighted_in_numpy),
    "over a norm of numpy": Loop(over_a_norm_of_numpy),
    "mean teacher": Loop(taught, copied, averages),
    "teacher from step 6 on": Loop(taught_late),
    "a copy made at step 6": Loop(taught_by_a_copy),
    "a copy rewritten at step 6": Loop(distilled, copied, rewritten),
    "a target in one step only": Loop(taught_for_a_while),
    "held near the weights of step 6": Loop(held_near),
    "soft pseudo labels": Loop(pseudo_labels),
    "hidden state": Loop(hidden_state),
    "hidden state, in place": Loop(hidden_in_place),
    "memory bank": Loop(memory),
    "detached focal weight": Loop(focal),
    "loss over loss.item()": Loop(balanced),
    "straight-through": Loop(straight_through),
    "gumbel, hard": Loop(hard_choice),
    ".data": Loop(with_data),
    "adversarial input, normalized": Loop(adversary),
    "spectral norm": Loop(plain, make=spectral),
}


@pytest.mark.parametrize("case", IN_LOSS)
def test_a_loss_that_depends_on_the_weights_without_a_graph_is_refused(case):
    assert_refused(IN_LOSS[case], "that has no graph")


def swa(net):
    return {"mean": AveragedModel(net)}


def from_step(first):
    def after(kept, net, t):
        if t >= first:
            kept["mean"].update_parameters(net)

    return after


def mean(kept, net):
    return kept["mean"]


def both(kept, net):
    return lambda x: net(x) + kept["mean"](x)


def listed(net):
    return {"all": [p.detach().clone() for p in net.parameters()]}


def decayed(kept, net, t):
    with torch.no_grad():
        torch._foreach_lerp_(kept["all"], list(net.parameters()), 0.3)


def called_with(kept, net):
    names = [name for name, _ in net.named_parameters()]
    averaged = dict(zip(names, kept["all"], strict=True))
    return lambda x: torch.func.functional_call(net, averaged, (x,)) + 0 * net(x)


IN_VALIDATION = {
    "averaged model": Loop(plain, swa, from_step(0), mean),
    "averaged model from step 8 on": Loop(plain, swa, from_step(8), mean),
    "beside the raw one": Loop(plain, swa, from_step(0), both),
    "a list of averages": Loop(plain, listed, decayed, called_with),
}


@pytest.mark.parametrize("case", IN_VALIDATION)
def test_validation_at_other_weights_than_the_trained_is_refused(case):
    assert_refused(IN_VALIDATION[case], "validation_loss depends on the weights through")


# -- what is given --------------------------------------------------------------------------------


def hard_labels(kept, net, x, y, t):
    return plain(kept, net, x, y, t) + 0.3 * F.cross_entropy(net(x + 0.1), net(x).argmax(1))


def confident(kept, net, x, y, t):
    with torch.no_grad():
        p, label = net(x).softmax(1).max(1)
        mask = (p > 0.5).to(x.dtype)
    each = F.cross_entropy(net(x + 0.1), label, reduction="none")
    return plain(kept, net, x, y, t) + (mask * each).mean()


def sign_adversary(kept, net, x, y, t):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(plain(kept, net, x, y, t), x)
    return plain(kept, net, (x + 0.1 * grad.sign()).detach(), y, t)


def logged(kept, net, x, y, t):
    loss = plain(kept, net, x, y, t)
    kept["sum"] = kept.get("sum", 0) + loss.detach()
    kept.setdefault("outputs", []).append(net(x).detach())
    return loss


def from_the_start(kept, net, x, y, t):
    if t == 0:
        kept["copy"] = copy.deepcopy(net)
    return distilled(kept, net, x, y, t)


def forgetful(kept, net, x, y, t):
    h = kept.get("h", torch.zeros(16, 4))
    h.zero_()
    out = net(x) + 0.5 * h
    kept["h"] = torch.tanh(out).detach()
    return F.cross_entropy(out, y)


def judged_in_between(kept, net, t):
    kept["mean"].update_parameters(net)
    kept["loss"] = kept["mean"](torch.ones(2, 8)).sum()


def frozen():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    net[0].requires_grad_(False)
    return net


def annealed_and_logged(kept, net, x, y, t):
    """Numbers of the loop's own, which are others in every step, and metrics in numpy."""
    out = net(x)
    value = F.cross_entropy(out, y) * 1.0 + (t / STEPS) * out.pow(2).mean() + 0.1
    kept.setdefault("log", []).append((value.item(), out.detach().numpy().mean()))
    return value


def batches_from_numpy(kept, net, x, y, t):
    kept.setdefault("log", []).append(net(x).detach().numpy())
    noise = torch.from_numpy(np.random.default_rng(t).normal(size=tuple(x.shape)))
    return plain(kept, net, x + 0.1 * noise, y, t)


def with_a_literal(kept, net, x, y, t):
    """Which the learning rate is as well."""
    out = net(x)
    return F.cross_entropy(out, y) + 0.3 * out.square().mean()


SLOPE = float(repr(H["lr"]))  # of a configuration that happens to be the rate


def with_a_setting(kept, net, x, y, t):
    return F.cross_entropy(F.leaky_relu(net(x), SLOPE), y)


GIVEN = {
    "a literal like the rate": Loop(with_a_literal),
    "a setting like the rate": Loop(with_a_setting),
    "annealed and logged": Loop(annealed_and_logged),
    "batches from numpy": Loop(batches_from_numpy),
    "hard pseudo labels": Loop(hard_labels),
    "masked by confidence": Loop(confident),
    "adversarial input, by sign": Loop(sign_adversary),
    "logged": Loop(logged),
    "a teacher that stays at the start": Loop(from_the_start),
    "a state that is cleared": Loop(forgetful),
    "an average for later": Loop(plain, swa, judged_in_between),
    "frozen first layer in the optimizer": Loop(plain, make=frozen),
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_has_no_such_dependence_is_exact(case):
    loop = GIVEN[case]
    losses, glocal = loop.run(H, watch=True)
    got = dict(
        zip(glocal.trajectory.names, glocal.trajectory.hypergradients[-1].tolist(), strict=True)
    )
    assert losses == loop.run(H)[0]
    for name in H:
        assert got[name] == pytest.approx(difference(loop, name), rel=1e-6)


def test_no_mode_stays_and_the_users_own_stay_in_order():
    class Seen(overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    stacks = []

    def inside(kept, net, x, y, t):
        with Seen():
            return plain(kept, net, x, y, t)

    def after(kept, net, t):
        stacks.append([type(m) for m in overrides._get_current_function_mode_stack()])

    with Seen():
        losses, _ = Loop(inside, after=after).run(H, watch=True)
        assert [type(m) for m in overrides._get_current_function_mode_stack()] == [Seen]
    # The loop's own arithmetic is watched beside the weights in the first three steps alone.
    ours = [[Shadows, Following]] * 2 + [[Following]] * (STEPS - 3) + [[]]
    assert stacks == [[Seen, *modes] for modes in ours]
    assert losses == Loop(plain).run(H)[0]


def test_attention_in_evaluation_computes_the_same_while_it_is_followed():
    def make():
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        return nn.Sequential(layer, nn.Linear(8, 4))

    def loss(kept, net, x, y, t):
        net.eval()
        with torch.no_grad():
            kept.setdefault("seen", []).append(net(x[:, None]))
        return F.cross_entropy(net(x[:, None])[:, 0], y)

    seen = []
    for watch in (False, True):
        outputs = {}
        Loop(
            loss,
            lambda net, kept=outputs: kept,
            make=make,
            judged=lambda kept, net: lambda x: net(x[:, None])[:, 0],
        ).run(H, watch)
        seen.append(outputs["seen"])
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_a_gradient_penalty_through_a_norm_whose_third_derivative_is_wrong_is_refused(norm):
    loop = penalized(lambda: norm(12))
    plain_losses, watched = loop.run(H), loop.run(H, watch=True)
    assert watched[0] == plain_losses[0]
    assert "torch's third derivative" in watched[-1].status
    assert not watched[-1].forecast().gradient


@pytest.mark.parametrize("mode", ["evaluation", "training", "frozen"])
def test_validation_by_running_statistics_is_refused_unless_they_stand_still(mode):
    def norm():
        net = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4))
        net[1].train(mode != "frozen")
        return net

    def judged(kept, net):
        def model(x):
            net[1].train(mode == "training")
            try:
                return net(x)
            finally:
                net[1].train(mode != "frozen")

        return model

    loop = Loop(plain, judged=judged, make=norm)
    *_, glocal = loop.run(H, watch=True)
    if mode == "evaluation":
        assert "batch norm in evaluation mode" in glocal.status
        assert not glocal.forecast().gradient
    else:
        found = glocal.trajectory.hypergradients[-1]
        np.testing.assert_allclose(found, [difference(loop, n) for n in H], rtol=1e-5)


def by_shares(kept, net, x, y, t):
    """Dynamic weight averaging: losses weighed by their sizes in the last step, as logged."""
    out = net(x)
    losses = F.cross_entropy(out, y), out.pow(2).mean()
    share = kept.get("share", 0.5)
    kept["log"] = losses
    return losses[0] * share + losses[1] * (1 - share)


def reads_shares(kept, net, t):
    first, second = (loss.item() for loss in kept["log"])
    kept["share"] = first / (first + second)


def by_speeds(kept, net, x, y, t):
    """Dynamic weight averaging: losses weighed by how fast they fell in the last two steps."""
    out = net(x)
    losses = F.cross_entropy(out, y), out.pow(2).mean()
    old, new = kept.get("old"), kept.get("share")
    first, second = (1.0, 1.0) if old is None else np.exp(np.divide(new, old) / 2).tolist()
    kept["old"], kept["log"] = new, losses
    return (losses[0] * first + losses[1] * second) * (2 / (first + second))


def reads_both(kept, net, t):
    kept["share"] = [loss.item() for loss in kept["log"]]


def smoothly(kept, net, x, y, t):
    """Over a running mean that is logged after the step."""
    kept["log"] = [F.cross_entropy(net(x), y)] * 2
    return kept["log"][0] / kept.get("mean", 1.0)


def averages_what_it_reads(kept, net, t):
    kept["mean"] = 0.9 * kept.get("mean", 1.0) + 0.1 * kept["log"][0].item()


@pytest.mark.parametrize(
    ("loss", "after"), [(by_speeds, reads_both), (smoothly, averages_what_it_reads)]
)
def test_recurrences_of_what_was_read_are_refused_in_few_steps(monkeypatch, loss, after):
    monkeypatch.setitem(globals(), "STEPS", 16)
    _, glocal = Loop(loss, after=after).run(H, watch=True)
    assert "read from the training in earlier steps" in glocal.status
    assert not glocal.trajectory.names


def mixed(kept, net, x, y, t):
    lam = float(np.random.default_rng(t).beta(0.4, 0.4))
    other = x.flip(0)
    out = net(lam * x + (1 - lam) * other)
    kept["log"] = F.cross_entropy(out, y), out.pow(2).mean()
    return lam * F.cross_entropy(out, y) + (1 - lam) * F.cross_entropy(out, y.flip(0))


@pytest.mark.parametrize(("loss", "is_refused"), [(by_shares, True), (mixed, False)])
def test_numbers_of_the_last_step_in_the_loss_are_refused_and_random_ones_are_not(
    monkeypatch, loss, is_refused
):
    monkeypatch.setitem(globals(), "STEPS", 24)
    _, glocal = Loop(loss, after=reads_shares).run(H, watch=True)
    assert ("read from the training in earlier steps" in glocal.status) is is_refused
    assert bool(glocal.trajectory.names) is not is_refused
