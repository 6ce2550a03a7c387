"""Training loops that use what ``torch.compile`` has made, beside the model that is trained."""

import copy

import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:The .grad"),
    pytest.mark.usefixtures("double_precision"),
]

STEPS, H = 8, {"lr": 0.3, "momentum": 0.8}


@pytest.fixture(scope="module", autouse=True)
def compiled_and_alive():
    """Something else in the process that was compiled and is not used."""
    function = compiled(lambda x: x + 1)
    function(torch.ones(2))
    return function


def compiled(thing):
    return torch.compile(thing, backend="eager")


def run(loss, first, after, h, watch):
    """All losses and the validation loss, the callback, and how many graphs were compiled."""
    torch.manual_seed(0)
    torch._dynamo.utils.counters.clear()
    x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
    net = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    kept, losses = first(net), []
    optimizer = torch.optim.SGD(net.parameters(), **h)

    def train(backward):
        for _ in range(STEPS):
            rows = torch.randint(0, 32, (16,))
            optimizer.zero_grad()
            value = loss(kept, net, x[rows], y[rows])
            backward(value)
            losses.append(value.item())
            optimizer.step()
            after(kept, net)

    def validate():
        return F.cross_entropy(net(x[32:]), y[32:])

    glocal = None
    if watch:
        trial = FixedTrial(h)
        trial.suggest_float("lr", 1e-4, 10.0), trial.suggest_float("momentum", 0.0, 0.999)
        observe = Observe(tangents=True, estimator="global")
        with GlocalCallback(trial, optimizer, validate, horizon=STEPS, observe=observe) as glocal:
            train(glocal.backward)
    else:
        train(lambda value: value.backward())
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return [*losses, validate().item()], glocal, graphs


def nothing(kept, net):
    """After a step."""


def plain(kept, net, x, y):
    return F.cross_entropy(net(x), y)


def distilled(kept, net, x, y):
    with torch.no_grad():
        target = kept["teacher"](x)
    return plain(kept, net, x, y) + F.mse_loss(net(x + 0.1), target)


def by_a_compiled_loss(kept, net, x, y):
    return plain(kept, net, x, y) + kept["loss"](net(x + 0.1), net(x).detach())


def augmented(kept, net, x, y):
    with torch.no_grad():
        x = kept["augment"](x)
    return plain(kept, net, x, y)


def of_a_compiled_model(kept, net, x, y):
    return F.cross_entropy(kept["model"](x), y)


def of_a_compiled_loss(kept, net, x, y):
    return kept["loss"](net, x, y)


def bootstrapped(net, x, y):
    out = net(x)
    return F.cross_entropy(out, y) + F.mse_loss(out, out.detach().tanh())


class Cut(nn.Module):
    """Passes the gradient of its input on as if its slope were 1."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x)
        return out + (torch.tanh(out) - out).detach()


def average(kept, net):
    with torch.no_grad():
        kept["average"](list(kept["mean"].parameters()), list(net.parameters()))


def in_place(means, weights):
    for mean, weight in zip(means, weights, strict=True):
        mean.lerp_(weight, 0.3)


def averaged(net, average, see):
    mean = copy.deepcopy(net)
    return {"mean": mean, "average": average(in_place), "teacher": see(mean)}


def eager(thing):
    return thing


REFUSED = {
    "pseudo labels of the model itself": (distilled, lambda n: {"teacher": compiled(n)}, nothing),
    "an average that is compiled": (distilled, lambda n: averaged(n, eager, compiled), average),
    "averaging that is compiled": (distilled, lambda n: averaged(n, compiled, eager), average),
    "a compiled loss": (by_a_compiled_loss, lambda n: {"loss": compiled(F.mse_loss)}, nothing),
    "nothing that is used": (distilled, lambda n: {"teacher": n}, nothing),
}
CUT = {
    "a loss": (of_a_compiled_loss, lambda n: {"loss": compiled(bootstrapped)}, nothing),
    "a model": (of_a_compiled_model, lambda n: {"model": compiled(Cut(n))}, nothing),
}
GIVEN = {
    "nothing that is used": (plain, lambda n: {}, nothing),
    "the model": (of_a_compiled_model, lambda n: {"model": compiled(n)}, nothing),
    "an augmentation": (augmented, lambda n: {"augment": compiled(lambda x: x * 1.1)}, nothing),
    "a teacher that stays": (
        distilled,
        lambda n: {"teacher": compiled(copy.deepcopy(n))},
        nothing,
    ),
}


def plain_and_watched(case):
    """Losses of both runs, the callback, and whether both compiled as many graphs."""
    torch._dynamo.reset()
    losses, _, graphs = run(*case, H, watch=False)
    torch._dynamo.reset()
    watched, glocal, graphs_watched = run(*case, H, watch=True)
    return losses, watched, glocal, graphs_watched == graphs


@pytest.mark.parametrize("case", REFUSED)
def test_a_dependence_without_a_graph_is_seen_through_compiled_functions(case):
    losses, watched, glocal, are_as_many = plain_and_watched(REFUSED[case])
    assert watched == losses and are_as_many
    assert "that has no graph" in glocal.status and not glocal.trajectory.names


@pytest.mark.parametrize("case", CUT)
def test_values_taken_out_of_a_graph_inside_a_compiled_function_are_refused(case):
    losses, watched, glocal, _ = plain_and_watched(CUT[case])
    assert watched == losses
    assert "takes values out of its graph" in glocal.status and not glocal.trajectory.names


@pytest.mark.parametrize("case", GIVEN)
def test_compiled_functions_without_such_a_dependence_cost_no_gradient(case):
    losses, watched, glocal, are_as_many = plain_and_watched(GIVEN[case])
    assert watched == losses and are_as_many
    found = glocal.trajectory.hypergradients[-1].tolist()
    for name, value in zip(glocal.trajectory.names, found, strict=True):
        ends = [
            run(*GIVEN[case], {**H, name: H[name] * (1 + e)}, watch=False)[0][-1]
            for e in (1e-5, -1e-5)
        ]
        assert value == pytest.approx((ends[0] - ends[1]) / (2e-5 * H[name]), rel=1e-5)
