"""Two processes (gloo, CPU) in real frameworks: averaged weights, and runs that are resumed."""

import loops
import pytest
import rank_frameworks
import torch
import torch.distributed as dist
from averaged import VALID, X, Y
from two_ranks import spawn

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    for name in ("lightning", "transformers", "accelerate", "ignite"):
        loops.framework(name)
    folder = tmp_path_factory.mktemp("ranks")
    spawn(rank_frameworks.work, folder, imports=["lightning.pytorch", "transformers.trainer"])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", rank_frameworks.RUNS)
def test_a_resumed_run_ends_as_the_uninterrupted_one_on_both_ranks(ranks, name):
    whole = ranks[0][name][None]
    assert len({*map(tuple, whole["path"])}) > 5  # the rate has moved
    for rank in ranks:
        for begin, found in rank[name].items():
            done = 0 if begin is None else begin + 1
            assert found["logged"] == whole["logged"][done:], begin
            for key in ("values", "path", "averaged"):
                assert found[key] == whole[key], (begin, key)
            assert found["weights"].keys() == whole["weights"].keys()
            for key, weight in found["weights"].items():
                assert torch.equal(weight, whole["weights"][key]), (begin, key)


@pytest.mark.parametrize("name", [n for n in rank_frameworks.RUNS if n != "Hugging Face"])
def test_the_better_weights_are_validated_and_left_sharded_or_not(ranks, name):
    whole = ranks[0][name][None]
    assert whole["averaged"]
    model = rank_frameworks.net()
    model.load_state_dict(whole["weights"])
    with torch.no_grad():
        value = rank_frameworks.loss_of(model, (X[VALID], Y[VALID])).item()
    assert value == pytest.approx(whole["logged"][-1], rel=1e-6)
    # Copies and shards of one model, in whatever framework, are one run but for rounding.
    copies = ranks[0]["Lightning, DDP"][None]
    assert whole["logged"] == pytest.approx(copies["logged"], rel=1e-3)


@pytest.mark.parametrize("name", ["Accelerate", "Fabric", "Ignite"])
def test_the_first_process_alone_writes_the_record_of_a_shared_trial(ranks, name):
    first, second = (rank[name][None]["written"] for rank in ranks)
    assert "glocal:record" in first and second == []
