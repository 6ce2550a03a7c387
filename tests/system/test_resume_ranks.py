"""Two processes that train one model go on from their checkpoints, bit for bit."""

import pytest
import rank_resume
import torch
import torch.distributed as dist
from two_ranks import spawn

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(rank_resume.work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("wrap", rank_resume.WRAPS)
def test_both_end_as_the_uninterrupted_run(ranks, wrap):
    weights, best, values = ranks[0][wrap][0]
    assert values["lr"] > 0
    for rank in ranks:
        for other in rank[wrap]:
            assert all(map(torch.equal, weights, other[0]))
            assert other[1:] == (best, values)
