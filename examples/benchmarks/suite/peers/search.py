"""Searches over plain trials: Optuna's samplers, and Hyperband."""

import math
from dataclasses import dataclass

import optuna
from optuna.samplers import GPSampler, TPESampler

from ..training import RUNGS, WORST, Clock, plain
from .single import row_of, trial

# Trials drawn at random before the sampler's model is asked, as a practitioner with ten trials
# sets it; at defaults both samplers draw ten at random.
STARTUP = 4


@dataclass(frozen=True)
class Search:
    """One way of searching.

    Attributes:
        sampler: ``"GPSampler"`` or ``"TPE"``.
        is_set: Whether it is set by a practitioner: the centre of the box first, four trials at
            random; else at defaults.
        schedule: Of the trials' learning rate.
        averaged: Whether trials return the best of last and averaged weights.
        prunes: Whether Hyperband stops trials.
    """

    sampler: str
    is_set: bool
    schedule: str
    averaged: bool = False
    prunes: bool = False

    def make(self, seed):
        kind = {"GPSampler": GPSampler, "TPE": TPESampler}[self.sampler]
        return kind(seed=seed, **({"n_startup_trials": STARTUP} if self.is_set else {}))

    def rows(self, store, task, seed, budget):
        key = ("search", self.name, task.name, seed)
        return store.longest(key, budget, search, store, task, seed, budget, self)

    @property
    def name(self):
        if self.prunes:
            return f"{self.sampler} + Hyperband, {self.schedule}"
        setting = "" if self.is_set else " at defaults"
        return f"{self.sampler}{setting}, {self.schedule}" + (", averages" * self.averaged)


SEARCHES = {
    peer.name: peer
    for peer in [
        Search(sampler, is_set, schedule, averaged)
        for sampler in ("GPSampler", "TPE")
        for is_set in (True, False)
        for schedule in ("constant", "cosine", "linear")
        for averaged in (False, True)
    ]
    + [Search("TPE", True, "cosine", prunes=True)]
}


def search(store, task, seed, budget, peer):
    """Trials until ``budget`` plain trials' passes are spent; one row per finished trial."""
    study, sampling = new_study(peer, task, seed), Clock()
    rows, passes, seconds = [], 0.0, 0.0
    while passes < budget * task.horizon:
        with sampling:
            asked = study.ask()
            h = task.suggest(asked)
        found, is_whole = trained(store, task, seed, h, peer, asked)
        row = row_of(found, peer) if is_whole else [found["passes"], found["cpu"]]
        passes, seconds = passes + row[0] + looks(found, task, peer), seconds + row[1]
        if is_whole:
            rows.append([passes, seconds + sampling.seconds, *row[2:]])
        with sampling:
            if is_whole:
                study.tell(asked, row[2] if math.isfinite(row[2]) else WORST)
            else:
                study.tell(asked, state=optuna.trial.TrialState.PRUNED)
    return rows


def looks(found, task, peer):
    """Passes of the looks that the pruner had at a trial which it did not stop."""
    is_whole = "last" in found
    return len(RUNGS) * (found["passes"] - task.horizon) if peer.prunes and is_whole else 0.0


def new_study(peer, task, seed):
    pruner = optuna.pruners.NopPruner()
    if peer.prunes:
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(sampler=peer.make(seed), pruner=pruner, study_name="suite")
    if peer.is_set:
        study.enqueue_trial(task.centre)
    return study


def trained(store, task, seed, h, peer, asked):
    """(run, whether it is a whole one): Hyperband may have stopped it."""
    if peer.prunes:
        for i in range(len(RUNGS)):
            found = prefix(store, task, seed, h, peer.schedule, i)
            loss = found["curve"][-1]
            asked.report(loss if math.isfinite(loss) else WORST, 3**i)
            if asked.should_prune():
                return found, False
    return trial(store, task, seed, h, peer.schedule), True


def prefix(store, task, seed, h, schedule, rung):
    """A plain trial that is stopped after ``rung + 1`` losses."""
    key = ("prefix", task.name, seed, h, schedule, rung)
    return store.get(key, plain, task, seed, h, schedule, rungs=rung + 1)
