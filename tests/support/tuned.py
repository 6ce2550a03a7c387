"""A small classification run that tunes itself."""

import optuna
import torch
from options import options
from torch import nn

from optuna_glocal import GlocalCallback

BOX = {"lr": (1e-3, 3.0), "omm": (5e-3, 1.0), "weight_decay": (1e-6, 1e-1)}


def trial_at(**h):
    trial = optuna.trial.FixedTrial(h)
    for name in h:
        trial.suggest_float(name, *BOX.get(name, (1e-6, 10.0)), log=True)
    return trial


def run(h, steps=200, spoil=None, scheduler=None, dtype=torch.float32, wrap=None, **arguments):
    """A small classification run; ``wrap(optimizer)`` replays a schedule instead of tuning."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 6, generator=g, dtype=dtype)
    y, yv = (torch.randint(0, 3, (n,), generator=g) for n in (200, 100))
    x = centres[y] + 0.8 * torch.randn(200, 6, generator=g, dtype=dtype)
    xv = centres[yv] + 0.8 * torch.randn(100, 6, generator=g, dtype=dtype)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=h["lr"], momentum=1 - h["omm"], weight_decay=h["weight_decay"]
    )
    schedule = scheduler(optimizer) if scheduler else None

    def value():
        return nn.functional.cross_entropy(model(xv), yv)

    def loop(backward, l2):
        for step in range(steps):
            chosen = torch.randint(0, 200, (16,), generator=g)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            if l2 is not None:
                loss = loss + l2 * sum((p**2).sum() for p in model.parameters())
            backward(spoil(step, loss) if spoil else loss)
            optimizer.step()
            if schedule:
                schedule.step()

    if wrap is not None:
        with wrap(optimizer):
            loop(torch.Tensor.backward, None)
        return model, optimizer, None, value().item()
    if arguments.get("tune"):
        arguments = {"by": "greedy"} | arguments
    glocal = GlocalCallback(trial_at(**h), optimizer, value, horizon=steps, **options(**arguments))
    with glocal:
        glocal.bind(momentum=lambda: 1 - glocal["omm"])
        loop(glocal.backward, glocal["l2"] if "l2" in h else None)
    return model, optimizer, glocal, value().item()


BAD = {"lr": 5e-3, "omm": 0.9, "weight_decay": 1e-4}
