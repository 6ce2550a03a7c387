"""Optuna's trials as the policy is told of them."""

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from optuna_glocal import Record
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.trials import learnable, outcome_of, situation
from optuna_glocal.storage.keys import RECORD

SPACE = {"x": FloatDistribution(0, 1)}
TEXT = Record(None, 10, 5, "given", value=0.5, gradient={"x": 1.0}).to_json()


def trial(state, **attrs):
    return create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params={"x": 0.25},
        distributions=SPACE,
        user_attrs=attrs,
    )


def test_complete_trials_and_pruned_ones_with_a_record_can_be_learnt_from():
    trials = [
        trial(TrialState.COMPLETE),
        trial(TrialState.PRUNED),
        trial(TrialState.PRUNED, **{RECORD: TEXT}),
        trial(TrialState.FAIL, **{RECORD: TEXT}),
    ]
    assert learnable(trials) == [trials[0], trials[2]]
    outcome = outcome_of(trials[2])
    assert not outcome.complete and outcome.record.value == 0.5 and outcome.params == {"x": 0.25}


def test_a_situation_counts_every_trial_once():
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial(TrialState.COMPLETE), trial(TrialState.PRUNED, **{RECORD: TEXT})])
    busy, unknown, asking = study.ask(SPACE), study.ask(), study.ask()
    trials = study.get_trials()
    now = situation(study, trials, trials[asking.number], Space.of(SPACE))
    assert (now.complete, now.pruned, len(now.data)) == (1, 1, 2)
    assert now.asking == [unknown.number, asking.number] and now.number == asking.number
    assert now.running.tolist() == [[busy.params["x"]]]
    assert now.data.y[0] == -1.0
