"""Where the validation gradient is taken."""

import pytest
import torch
from tuned import trial_at

from optuna_glocal import GlocalCallback, Tune


@pytest.mark.parametrize(
    ("make", "average", "at_raw"),
    [
        (torch.optim.SGD, True, [True, False]),
        (torch.optim.SGD, False, [True, True]),
        (torch.optim.AdamW, True, [True, True]),
    ],
)
def test_validation_gradients_are_taken_at_raw_and_averaged_weights_by_turns(
    make, average, at_raw
):
    x = torch.tensor([1.0], requires_grad=True)
    optimizer = make([x], lr=0.1)
    iterates, places, seen = [1.0], [], []

    def loss():
        seen.append(x.item())
        return (x**2).sum()

    with GlocalCallback(
        trial_at(lr=0.1),
        optimizer,
        loss,
        horizon=9,
        tune=Tune(by="greedy", every=1, average=average),
    ) as glocal:
        for _ in range(8):
            seen.clear()
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
            iterates.append(x.item())
            places += [value in iterates for value in seen]
    assert places == 4 * at_raw
