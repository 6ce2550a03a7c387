"""Two processes (gloo, CPU) without a wrapper of the model, and vectors in two processes."""

import numpy as np
import pytest
import rank_averaging
import torch
import torch.distributed as dist
from two_ranks import spawn

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(rank_averaging.work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_same(a, b):
    """Bit for bit."""
    assert a["rates"] == b["rates"] and a["best"] == b["best"] and a["status"] == b["status"]
    for key in ("weights", "best weights"):
        assert all(map(torch.equal, a[key], b[key]))


def assert_near(a, one):
    np.testing.assert_allclose(a["rates"], one["rates"], rtol=1e-6)
    assert a["best"] == pytest.approx(one["best"], rel=1e-6)
    for ours, theirs in zip(a["weights"], one["weights"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", [*rank_averaging.BY_HAND, "hooks", "shared trial"])
def test_gradients_averaged_by_hand_are_found_and_the_ranks_move_alike(both, how):
    first, second = (rank[how] for rank in both)
    assert_same(first, second)
    assert_near(first, rank_averaging.train())
    assert "Tuning itself: lr" in first["status"] and not first["said"] + second["said"]


def test_processes_that_train_models_of_their_own_are_left_alone(both):
    noisy, clipped = (rank["alone"] for rank in both)
    assert len(set(noisy["rates"])) > 5 and len(set(clipped["rates"])) > 5
    assert noisy["rates"] != clipped["rates"]
    (said,) = noisy["said"]
    assert "runs 2 processes" in said and "a TorchDistributedTrial" in said
    assert not clipped["said"]
    plain = rank_averaging.train(average=rank_averaging.clipped)
    assert plain["rates"] == clipped["rates"]


@pytest.mark.parametrize("name", rank_averaging.VECTORS)
def test_vectors_move_alike_and_as_in_one_process_with_the_joint_batch(both, name):
    first, second = (rank[name] for rank in both)
    assert_same(first, second)
    assert torch.equal(first["l2"], second["l2"])
    one = rank_averaging.train(boxes=rank_averaging.VECTORS[name])
    assert_near(first, one)
    torch.testing.assert_close(first["l2"], one["l2"], rtol=1e-5, atol=0.0)
    assert (one["l2"].log() - one["l2"].log().mean()).abs().max() > 0.1  # they have parted


def test_best_of_on_one_rank_alone_is_refused_with_a_sentence(both):
    assert "expected a call on every process" in both[0]["best_of"]
    assert "none on rank 1 within 0.5 s" in both[0]["best_of"] and both[1]["best_of"] == ""
