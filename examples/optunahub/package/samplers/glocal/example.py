"""Thirty short training runs, each of which tells the sampler its own gradient."""

import optuna
from optuna_glocal import GlocalCallback
import optunahub
import torch
from torch.nn.functional import cross_entropy


GlocalSampler = optunahub.load_module("samplers/glocal").GlocalSampler

STEPS = 200
torch.manual_seed(0)
x, x_val = torch.randn(2, 512, 16)
teacher = torch.randn(16, 4)
y, y_val = (x @ teacher).argmax(1), (x_val @ teacher).argmax(1)


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.99)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)

    def validation_loss() -> torch.Tensor:
        return cross_entropy(model(x_val), y_val)

    with GlocalCallback(trial, optimizer, validation_loss, horizon=STEPS) as glocal:
        for _ in range(STEPS):
            rows = torch.randint(512, (64,))
            optimizer.zero_grad()
            glocal.backward(cross_entropy(model(x[rows]), y[rows]))  # was: (...).backward()
            optimizer.step()
    return validation_loss().item()


if __name__ == "__main__":
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    study.optimize(objective, n_trials=30)
    print(study.best_params)
