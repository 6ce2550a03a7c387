"""The hyperparameters of a study's best trial, as that trial ended with them."""

from __future__ import annotations

from typing import Any

from optuna.study import Study

from optuna_glocal.storage import _optuna
from optuna_glocal.storage.final_values import read_final_values
from optuna_glocal.storage.learnt_vector import learnt_vectors
from optuna_glocal.storage.record import Record


def best_hyperparameters(study: Study) -> dict[str, Any]:
    """Hyperparameters of the best trial: where the tuned ones ended, the others as suggested.

    In a study of self-tuned trials ``study.best_params`` are only the values with which the best
    trial started. Where no trial tunes itself, both are the same. To train again as the best trial
    did, replay ``Schedule.best(study)``: its path, not its last values, gave the best objective.

    Args:
        study: A study with one objective and at least one complete trial.

    Returns:
        Values by name, in the units of ``trial.suggest_*``. A vector that the trial has learnt
        (:func:`~optuna_glocal.suggest_vector`) is an array of its shape.

    Raises:
        ValueError: If the study has several objectives or no complete trial, or if the best trial
            tuned itself and its schedule cannot be read.

    Example:
        >>> import optuna, torch, optuna_glocal
        >>> def objective(trial):
        ...     x = torch.ones(1, requires_grad=True)
        ...     optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 1e-4, 1, log=True))
        ...     with optuna_glocal.GlocalCallback(
        ...         trial, optimizer, lambda: (x**2).sum(), horizon=200, tune=True
        ...     ) as glocal:
        ...         for _ in range(200):
        ...             optimizer.zero_grad()
        ...             glocal.backward((x**2).sum())
        ...             optimizer.step()
        ...     return (x**2).sum().item()
        >>> study = optuna.create_study()
        >>> study.enqueue_trial({"lr": 1e-3})
        >>> study.optimize(objective, n_trials=1)
        >>> optuna_glocal.best_hyperparameters(study)["lr"] > study.best_params["lr"]
        True
    """
    if _optuna.is_multi_objective(study):
        raise ValueError(
            f"study: expected one objective, got {len(study.directions)}. Choose a trial of "
            "study.best_trials and read its params."
        )
    try:
        trial = study.best_trial
    except ValueError:
        raise ValueError(
            "study: expected a complete (and feasible) trial, got none. Run more trials."
        ) from None
    record, finals = Record.read(trial), read_final_values(trial)
    tuned = () if record is None else record.tuned
    if missing := [name for name in tuned if name not in finals]:
        raise ValueError(
            f"study: expected the schedule of its best trial {trial.number}, which tuned "
            f"{missing}, got none that can be read. The attribute glocal:schedule was removed or "
            "is incomplete; study.best_params are the values that the trial started with."
        )
    vectors = {n: v.values for n, v in learnt_vectors(trial.user_attrs).items() if v.is_whole}
    return {**trial.params, **finals, **vectors}
