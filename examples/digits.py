"""The task that the examples share: scikit-learn's digits, a small network, an ordinary loop."""

import optuna
import torch
from sklearn.datasets import load_digits

from optuna_glocal import GlocalCallback, Observe

Data = tuple[torch.Tensor, torch.Tensor]


def load() -> tuple[Data, Data]:
    """Scikit-learn's 8x8 digits: 600 images to train on, 600 to validate on."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x - x.mean(dim=0))[order], y[order]
    return (x[:600], y[:600]), (x[600:1200], y[600:1200])


class Task:
    """The digits, and what any Optuna user has: a model, a training loop, an objective."""

    def __init__(self, steps: int) -> None:
        self.train, self.valid = load()
        self.steps = steps

    def build(self, trial: optuna.Trial) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """A fresh model and its optimizer with this trial's hyperparameters."""
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        )
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=trial.suggest_float("lr", 1e-4, 1.0, log=True),
            momentum=trial.suggest_float("momentum", 0.0, 0.99),
            weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        )
        return model, optimizer

    def validation_loss(self, model: torch.nn.Module) -> torch.Tensor:
        """Mean cross-entropy on the held-out images: what the study minimises."""
        x, y = self.valid
        return torch.nn.functional.cross_entropy(model(x), y)

    def fit(self, trial, model, optimizer, backward) -> float:  # noqa: ANN001
        """An ordinary loop; the pruner is asked twenty times."""
        (x, y), batches = self.train, torch.Generator().manual_seed(0)
        for step in range(1, self.steps + 1):
            batch = torch.randint(len(x), (64,), generator=batches)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            backward(loss)  # the one changed line of the loop; was: loss.backward()
            optimizer.step()
            if step % max(1, self.steps // 20) == 0:
                with torch.no_grad():
                    value = self.validation_loss(model).item()
                trial.report(value, step)
                if step < self.steps and trial.should_prune():
                    raise optuna.TrialPruned()  # the callback still leaves a gradient
        return value

    def objective(self, trial: optuna.Trial) -> float:
        """With hypergradients: the callback is told the optimizer and the validation loss."""
        model, optimizer = self.build(trial)
        with GlocalCallback(
            trial,
            optimizer,
            lambda: self.validation_loss(model),
            horizon=self.steps,
            observe=Observe(tangents=True),  # "auto" carries none where they cost too much
        ) as glocal:
            return self.fit(trial, model, optimizer, glocal.backward)

    def plain_objective(self, trial: optuna.Trial) -> float:
        """The same without: for peers, which pay for nothing that they do not use."""
        model, optimizer = self.build(trial)
        return self.fit(trial, model, optimizer, torch.Tensor.backward)
