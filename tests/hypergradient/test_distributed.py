"""DistributedDataParallel on gloo: two processes have the tangents of one with the joint batch."""

import json
import logging
import os
import warnings

import numpy as np
import oracles
import pytest
import torch
import torch.distributed as dist
from exact import fixed_trial
from torch import nn
from two_ranks import TorchDistributedTrial, spawn

from optuna_glocal import GlocalCallback, Observe, SelfTuning
from optuna_glocal.hypergradient.distributed import local, ranks_of

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
STEPS, H = 10, {"lr": 0.3, "momentum": 0.8, "l2": 0.01}


def train(task, rank, size, observe=True, wrap=None, stop=None, shared=True, accumulate=False):
    model = task.new_model()
    whole = wrap(model) if wrap else model
    optimizer = torch.optim.SGD(model.parameters(), lr=H["lr"], momentum=H["momentum"])
    trial = fixed_trial(H)
    trial = TorchDistributedTrial(trial) if wrap and shared else trial
    glocal = None
    if observe:
        glocal = GlocalCallback(
            trial, optimizer, lambda: task.validation(model), horizon=STEPS,
            observe=Observe(estimator="global", every=1, tangents=True),
        )  # fmt: skip
    with glocal or torch.enable_grad():
        l2 = glocal["l2"] if observe else H["l2"]
        for t in range(STEPS):
            optimizer.zero_grad()
            halves = (task.batches[t][:4], task.batches[t][4:])
            mine = halves[rank] if size == 2 else task.batches[t]
            for part in mine.chunk(2) if accumulate else [mine]:
                loss = nn.functional.cross_entropy(whole(task.x[part]), task.y[part])
                loss = loss + l2 * sum((p**2).sum() for p in model.parameters())
                loss = loss / 2 if accumulate else loss
                if stop == (rank, t):
                    glocal._run.shield.halt("A test stopped this rank.", warn=False)
                glocal.backward(loss) if observe else loss.backward()
            optimizer.step()
    return model, glocal, trial


def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    task = oracles.Task(steps=STEPS)
    ddp = nn.parallel.DistributedDataParallel
    found, lines = {}, []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("optuna_glocal").addHandler(handler)
    for name, options in {
        "plain": {},
        "accumulated": {"accumulate": True},
        "one stops": {"stop": (1, 4)},
        "not shared": {"shared": False},
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, glocal, trial = train(task, rank, 2, wrap=ddp, **options)
            options.pop("stop", None)
            same, _, _ = train(task, rank, 2, observe=False, wrap=ddp, **options)
        found[name] = {
            "h": glocal.trajectory.hypergradients[1:].tolist(),
            "identical": all(
                torch.equal(a, b)
                for a, b in zip(model.parameters(), same.parameters(), strict=True)
            ),
            "status": glocal.status,
            "attrs": sorted(trial.user_attrs),
            "lines": len(lines),
        }
        lines.clear()
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
    dist.barrier()  # gloo aborts a rank whose peer leaves first
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("run", ["plain", "accumulated"])
def test_two_processes_have_the_tangents_of_the_joint_batch(both, run):
    _, glocal, _ = train(oracles.Task(steps=STEPS), 0, 1)
    exact = glocal.trajectory.hypergradients[1:]
    for rank in both:
        got = np.array(rank[run]["h"])
        scale = abs(exact).max(0)
        np.testing.assert_allclose(got / scale, exact / scale, rtol=0, atol=1e-10)


def test_training_is_bit_identical(both):
    assert all(run["identical"] for rank in both for run in rank.values())


def test_rank_0_writes_the_record(both):
    assert "glocal:record" in both[0]["plain"]["attrs"]
    assert both[1]["plain"]["attrs"] == []


def test_rank_0_speaks_for_all_and_each_process_for_its_own_trial(both):
    assert [rank["plain"]["lines"] for rank in both] == [1, 0]
    assert [rank["not shared"]["lines"] for rank in both] == [1, 1]


def test_a_rank_that_stops_takes_the_others_along(both):
    assert "Another process" in both[0]["one stops"]["status"]
    assert "A test stopped" in both[1]["one stops"]["status"]
    for rank in both:
        h = np.array(rank["one stops"]["h"], dtype=float)
        assert np.isfinite(h[:4]).all() and np.isnan(h[4:]).all()


def test_a_trial_of_one_process_is_refused(both):
    assert all("TorchDistributedTrial on every rank" in r["not shared"]["status"] for r in both)


@pytest.fixture
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tune_alone(wrap=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    whole = wrap(model) if wrap else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.linspace(-1, 1, 80, dtype=torch.float64).reshape(20, 4)

    def loss():
        return (whole(x) - x.sum(1, keepdim=True)).square().mean()

    with SelfTuning(optimizer, loss, horizon=100, lr=(1e-6, 1.0)) as run:
        for _ in range(100):
            optimizer.zero_grad()
            run.backward(loss())
            optimizer.step()
        best = run.best_of(lambda: loss().item())
        run.load_best()
        after = loss().item()
    return run, best, after, [local(p).clone() for p in optimizer.param_groups[0]["params"]]


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, sharded])
def test_a_world_of_one_is_one_process(world_of_one, wrap):
    run, best, after, params = tune_alone(wrap)
    alone, expected, _, weights = tune_alone()
    assert "Tuning itself: lr" in run.status and run.hyperparameters["lr"] > 1e-3
    assert run.hyperparameters["lr"] == pytest.approx(alone.hyperparameters["lr"], rel=1e-6)
    assert best == after == pytest.approx(expected, rel=1e-6)
    for p, q in zip(params, weights, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


class FullyShardedDataParallel(nn.Module):
    """As the older torch.distributed.fsdp's, by its name."""

    def __init__(self, module):
        super().__init__()
        self.module, self.process_group = module, None

    def forward(self, x):
        return self.module(x)


class DeepSpeedEngine(FullyShardedDataParallel):
    """As deepspeed's, by its name."""


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [(DeepSpeedEngine, "DeepSpeed steps"), (FullyShardedDataParallel, "Use torch.distributed")],
)
def test_what_hides_the_parameters_is_refused_with_a_sentence(world_of_one, wrap, sentence):
    with pytest.warns(RuntimeWarning, match=sentence):
        run, *_ = tune_alone(wrap)
    assert sentence in run.status


def test_outside_of_distributed_training_there_are_no_ranks():
    assert ranks_of([torch.ones(1)]) is None
