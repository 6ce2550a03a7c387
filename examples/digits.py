"""The quickstart's task for the other examples: observed, with a pruner that is asked."""

import optuna
import quickstart
import torch

from optuna_glocal import GlocalCallback, Observe


class Task(quickstart.Task):
    """The quickstart's digits, network and optimizer, in a loop that may be pruned."""

    def validation_loss(self, model: torch.nn.Module) -> torch.Tensor:
        """Mean cross-entropy on the held-out images: what the study minimises."""
        x, y = self.valid
        return torch.nn.functional.cross_entropy(model(x), y)

    def train_reporting(self, trial, model, optimizer, backward) -> float:  # noqa: ANN001
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
            return self.train_reporting(trial, model, optimizer, glocal.backward)

    def plain_objective(self, trial: optuna.Trial) -> float:
        """The same without: for peers, which pay for nothing that they do not use."""
        model, optimizer = self.build(trial)
        return self.train_reporting(trial, model, optimizer, torch.Tensor.backward)
