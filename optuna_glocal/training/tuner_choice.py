"""What moves the hyperparameters of a run, made of the user's options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from optuna_glocal.hypergradient.agreement import PARTED
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.distributed import NOT_SHARED
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.optimizers import rule_of
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.training.options import Observe, Tune, steps_between_moves
from optuna_glocal.training.run import Run
from optuna_glocal.tuning.annealing import Annealing
from optuna_glocal.tuning.blend import Blend
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer, default_step
from optuna_glocal.tuning.position import Position
from optuna_glocal.tuning.rollback import Guard
from optuna_glocal.tuning.snapshot import Snapshot
from optuna_glocal.tuning.tuner import Tuner
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.weight_averaging import At, Averages
from optuna_glocal.tuning.windowed import Windowed

# Of by="blend": steps between two moves of all but learning rates, the size of one of these moves,
# the most that they reach together, and the part of the run in which learning rates decay.
_EVERY, _STEP, _REACH, _ANNEALED = 10, 0.12, 17.0, 0.4


def tuner_of(
    run: Run,
    options: Tune,
    averages: Averages | None,
    names: Sequence[str],
    note: Callable[[int, float], None],
) -> Tuner | Blend:
    """What moves the hyperparameters of a run.

    Args:
        run: The run; its bindings are complete.
        options: The user's.
        averages: Averages of the weights, if they are kept.
        names: The hyperparameters to move.
        note: Told every validation loss that is seen on the way: (steps done, loss).
    """
    run.validation.lighten()
    if options.by == "blend":
        return _blend(run, options, averages, names, note)
    every, step = steps_between_moves(options, run.horizon), options.meta_step
    meta = MetaOptimizer(default_step(every, run.horizon) if step is None else step)
    position, greedy = _position(run, options, names, meta), Greedy(run.optimizer, run.bindings)
    guard = Guard(
        run.optimizer,
        greedy.params,
        position.values(),
        validate=run.validation.value,
        modules=run.validation.modules,
        averages=averages,
        on_host=options.snapshot == "cpu",
        agreement=run.agreement,
    )
    looks = averages is not None and where_to_look(run.optimizer, options) != "raw"
    average = averages.recent if averages is not None and looks else None
    return Tuner(
        run.optimizer,
        position,
        greedy,
        ValidationGradient(run.validation, greedy.params, average, note),
        guard=guard,
        every=every,
        note=note,
        windowed=None if options.by == "greedy" else _windowed(run, options, every),
    )


def _position(run: Run, options: Tune, names: Sequence[str], meta: MetaOptimizer) -> Position:
    coordinates = {name: run.coordinates[name] for name in names}
    holds = options.holds_timescale
    return Position(run.optimizer, run.bindings, coordinates, meta, holds_timescale=holds)


def _blend(
    run: Run,
    options: Tune,
    averages: Averages | None,
    names: Sequence[str],
    note: Callable[[int, float], None],
) -> Blend:
    position = _position(run, options, names, MetaOptimizer(1.0))
    share = float(options.anneal) if options.anneal is not True else _ANNEALED
    annealing = Annealing(run.optimizer, run.horizon, share)
    every = options.every or _EVERY
    step = options.meta_step or min(_STEP, _REACH * every / run.horizon)
    asked = set(names) - rates_of(run.bindings)
    greedy = Greedy(run.optimizer, run.bindings, is_asked=bool(asked))
    if position.rates and run.agreement.is_alone:  # which move without it

        def hold(why: str) -> None:
            run.hold(run.bindings.in_loss, why)

        greedy.otherwise = hold
    average = None if averages is None else averages.recent
    start = None
    if position.rates:
        on_host, modules = options.snapshot == "cpu", run.validation.modules
        start = Snapshot(run.optimizer, greedy.params, modules, on_host=on_host)
    return Blend(
        run.optimizer,
        position,
        greedy,
        ValidationGradient(run.validation, greedy.params, average, note),
        averages,
        start=start,
        every=every,
        step=step,
        annealing=annealing,
    )


def _windowed(run: Run, options: Tune, every: int) -> Windowed:
    forecasts = {"estimator": options.estimator, "policy": options.policy}
    return Windowed(
        Tangent(run.optimizer, run.bindings),
        run.validation,
        run.scales,
        window=every,
        horizon=run.horizon,
        discount=options.discount,
        forecasts=forecasts if options.by == "glocal" else None,
    )


def untunable(run: Run, options: Tune) -> str | None:
    """Why the processes that train the model cannot tune together; ``None`` if they can."""
    ranks = run.ranks
    if ranks is None:
        return None
    if ranks.refusal:
        return ranks.refusal
    if run.agreement.is_alone:
        return NOT_SHARED
    if options.by in ("local", "glocal") or (ranks.is_sharded and options.by != "blend"):
        return (
            f"Tune(by={options.by!r}) works in one process"
            f"{' or with copies of the model' * (options.by == 'greedy')} only. Leave by out."
        )
    return None


def parted(run: Run) -> str | None:
    """Why the processes of a training do not tune together, asked by all of them at once."""
    agreement, bindings = run.agreement, run.bindings
    if agreement.is_alone:
        return None
    if not agreement.all_agree(run.shield.halted is None):
        return PARTED
    if not agreement.are_same(bindings.values, bindings.freeze(), run.horizon):
        return (
            "The processes of this training have different hyperparameters or horizons. Give them "
            "all the same."
        )
    return None


def unshardable(run: Run, names: Collection[str]) -> str | None:
    """Why these hyperparameters cannot move in a sharded model; ``None`` if they can."""
    stuck = sorted(set(names) - rates_of(run.bindings))
    if not run.agreement.is_sharded or not stuck:
        return None
    return (
        f"The model is sharded (fully_shard), where only learning rates move, but {stuck} were to "
        'move as well. Name the learning rates: tune="lr".'
    )


def rates_of(bindings: Bindings) -> set[str]:
    """Names that move a learning rate."""
    return {n for (_, entry), b in bindings.entries.items() if entry == "lr" for n in b.slopes}


def without_rule(run: Run, names: Collection[str]) -> list[str]:
    """Hyperparameters that stay where they are, since the optimizer has no closed-form rule."""
    return [] if rule_of(run.optimizer) else sorted(set(names) - rates_of(run.bindings))


def why_without_rule(optimizer: torch.optim.Optimizer) -> str:
    """A sentence on hyperparameters that :func:`without_rule` has named."""
    return (
        f"Of {type(optimizer).__name__} only learning rates move, as it has no closed-form rule "
        "(see optuna_glocal.hypergradient.optimizers)."
    )


def why_nothing(run: Run) -> str:
    """Why no hyperparameter moves."""
    name = type(run.optimizer).__name__
    once = sorted(settled(run.optimizer, run.bindings))
    why = [f"{name} reads {n} in its first step only, so it cannot be tuned." for n in once]
    nothing = "No hyperparameter to tune is bound or used in a loss."
    return " ".join([nothing, *why, *run.bindings.unbound()])


def settled(optimizer: torch.optim.Optimizer, bindings: Bindings) -> set[str]:
    """Hyperparameters that reach nothing but entries that only the first step reads."""
    rule = rule_of(optimizer)
    ignored = () if rule is None else rule.settled
    acting = {n for (_, e), b in bindings.entries.items() if e not in ignored for n in b.slopes}
    return bindings.bound - acting - set(bindings.in_loss)


def movable(options: Tune, optimizer: torch.optim.Optimizer, bindings: Bindings) -> set[str]:
    """The hyperparameters that move where none is named."""
    if options.by != "blend":
        return set(bindings.values) - settled(optimizer, bindings)
    return (rates_of(bindings) | (set(bindings.values) - bindings.bound)) - settled(
        optimizer, bindings
    )


def where_to_look(optimizer: torch.optim.Optimizer, options: Observe | Tune) -> At:
    """Where a trial with averages takes its greedy gradient.

    The same for an observed trial, so that its averages are those of a tuned one.
    """
    by = options.by if isinstance(options, Tune) else "greedy"
    if by == "blend":
        return "blend"
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return "in turn" if options.average and is_sgd and by == "greedy" else "raw"
