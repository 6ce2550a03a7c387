"""A sample of every weight notices that a tensor has moved, wherever it is asked."""

import pytest
import torch

from optuna_glocal.hypergradient.weight_sample import WeightSample


def sampled(*tensors):
    return torch.cat(WeightSample(tensors).read())


@pytest.mark.parametrize("size", [1, 7, 255, 256])
def test_a_small_tensor_is_read_whole(size):
    t = torch.randn(size)
    assert torch.equal(sampled(t), t)


@pytest.mark.parametrize("shape", [(1000,), (64, 64), (512, 300), (3, 5, 7, 11)])
def test_values_of_a_large_one_are_spread_over_rows_and_columns(shape):
    t = torch.arange(torch.Size(shape).numel()).reshape(shape)
    seen = sampled(t)
    assert 100 <= len(seen) <= 256 and len(seen.unique()) == len(seen)
    gaps = seen.diff()
    assert (gaps == gaps[0]).all() and gaps[0] % 2 == 1
    assert t.numel() - 1 - seen[-1] < gaps[0], "the end is seen as well as the start"
    if len(shape) == 2:
        rows, columns = seen // shape[1], seen % shape[1]
        assert len(rows.unique()) > min(shape[0], 256) / 2 and len(columns.unique()) > 16


def test_it_is_of_now_and_each_tensor_has_its_place():
    a, b = torch.zeros(300), torch.zeros(5)
    sample = WeightSample([a, b])
    (before,) = sample.read()
    b.fill_(1.0)
    (after,) = sample.read()
    assert torch.equal(before, torch.zeros_like(before)), "what was read is a copy"
    assert torch.equal(after[-5:], b) and not after[:-5].any()
    a.requires_grad_()
    assert not WeightSample([a]).read()[0].requires_grad


def test_views_and_other_layouts_are_read_within_their_memory():
    whole = torch.arange(600.0)
    assert set(sampled(whole[400:]).tolist()) == set(range(400, 600))
    turned = torch.arange(6.0).reshape(2, 3).t()
    assert sorted(sampled(turned).tolist()) == list(range(6))


def test_no_tensors_have_no_values():
    assert WeightSample([]).read() == []


def test_writes_through_data_and_numpy_are_seen():
    weights = [torch.nn.Parameter(torch.randn(100, 100)), torch.nn.Parameter(torch.randn(5))]
    sample = WeightSample(weights)
    (before,) = sample.read()
    weights[0].data.clamp_(-0.5, 0.5)
    (clamped,) = sample.read()
    weights[1].detach().numpy()[3] = 9.0
    (last,) = sample.read()
    assert not torch.equal(before, clamped) and not torch.equal(clamped, last)


@pytest.mark.parametrize("make", [torch.nn.Parameter, torch.Tensor.detach])
def test_whoever_else_holds_the_memory_is_told(make):
    weights = [make(torch.zeros(300)), make(torch.zeros(5, 4))]
    sample = WeightSample(weights)
    assert not sample.is_shared
    weights[0].sum().requires_grad_().backward()
    assert not sample.is_shared, "a graph that is gone holds nothing"
    array = weights[1].detach().numpy()
    assert sample.is_shared and WeightSample(weights).is_shared
    del array
    assert not sample.is_shared
    assert WeightSample([weights[0].detach()[10:]]).is_shared, "a part of a larger one"


def test_memory_of_several_processes_is_shared():
    assert WeightSample([torch.zeros(3).share_memory_()]).is_shared
