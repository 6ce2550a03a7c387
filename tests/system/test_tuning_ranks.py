"""Two processes (gloo, CPU) that train one model and tune it: they decide alike, as one would."""

import numpy as np
import pytest
import rank_workers
import torch
import torch.distributed as dist
from two_ranks import spawn

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
EQUAL = [("ddp", name) for name in rank_workers.ALIKE] + [
    ("fsdp", name) for name in rank_workers.ALIKE if name not in rank_workers.COPIES_ONLY
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(rank_workers.work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_same(a, b):
    """Bit for bit."""
    assert a["rates"] == b["rates"]
    assert a["hyperparameters"] == b["hyperparameters"]
    for key in ("weights", "best weights"):
        assert all(map(torch.equal, a[key], b[key]))


@pytest.mark.parametrize("run", EQUAL, ids=" ".join)
def test_the_ranks_move_alike_and_as_one_process_with_the_joint_batch(both, run):
    first, second = (rank[run] for rank in both)
    one = rank_workers.train(**rank_workers.ALIKE[run[1]])
    assert_same(first, second)
    assert first["best"] == second["best"]
    assert one["hyperparameters"]["lr"] != rank_workers.SGD["lr"]
    assert "Tuning itself: lr" in one["status"] and first["status"] == one["status"]
    assert first["rollbacks"] == one["rollbacks"] == ("not finite" in run[1])
    np.testing.assert_allclose(first["rates"], one["rates"], rtol=1e-6)
    for name, value in one["hyperparameters"].items():
        assert first["hyperparameters"][name] == pytest.approx(value, rel=1e-6)
    assert first["best"] == pytest.approx(one["best"], rel=1e-6)
    for key in ("weights", "best weights"):
        for ours, theirs in zip(first[key], one[key], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in rank_workers.FAILING if n != "best_of raises"])
def test_a_rank_that_stops_tuning_takes_the_other_along(both, name):
    first, second = (rank["ddp", name] for rank in both)
    assert_same(first, second)
    assert "Another process of this training has stopped tuning" in first["status"]
    own = "no more data" if name == "a loss raises" else "A test stopped this rank"
    assert own in second["status"]
    assert len(first["said"]) == len(second["said"]) == 1


def test_best_of_that_raises_on_one_rank_raises_there_only(both):
    first, second = (rank["ddp", "best_of raises"] for rank in both)
    assert np.isnan(first["best"]) and second["best"] is None
    assert all(map(torch.equal, first["weights"], second["weights"]))


def test_different_starts_are_refused(both):
    for rank in both:
        assert "different hyperparameters or horizons" in rank["other starts"]["status"]


def test_a_process_group_of_one_is_one_process(both):
    for rank in both:
        assert_same(rank["a group of one"], rank["one by one"])
        assert "Tuning itself: lr" in rank["a group of one"]["status"]


def test_one_process_writes_the_record_of_a_shared_trial(both):
    first, second = (rank["shared"] for rank in both)
    assert_same(first, both[0]["ddp", "sgd"])
    assert_same(first, second)
    assert "glocal:record" in first["attrs"] and second["attrs"] == []


def test_a_trial_of_one_process_is_refused(both):
    for rank in both:
        assert "TorchDistributedTrial on every rank" in rank["not shared"]["status"]


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (("fsdp", "of the loss"), "only learning rates move, but ['l2']"),
        (("fsdp", "greedy"), "with copies of the model only"),
        (("fsdp", "observed"), "cannot be carried through shards"),
        (("ddp", "windows"), "works in one process only"),
    ],
    ids=lambda run: " ".join(run) if isinstance(run, tuple) else "",
)
def test_what_cannot_be_done_is_refused_with_a_sentence(both, run, sentence):
    for rank in both:
        assert sentence in rank[run]["status"]
        assert len(rank[run]["said"]) == 1
