"""Trust is computed from records and proposals, and reads hostile ones."""

import numpy as np
import optuna
from studies import DISTRIBUTIONS, texts, traces

from optuna_glocal import GlocalSampler, Record
from optuna_glocal import visualization as v


def test_trust_is_what_records_and_proposals_say():
    def objective(trial):
        x, y = trial.suggest_float("x", -1, 2), trial.suggest_float("y", -1, 3)
        if trial.number == 1:
            Record(1, 10, 2, status="Too rough.", value=1.0).write(trial)
            return 1.0
        sd = {"x": 3 * abs(2 * x), "y": 0.0}
        gradient = {"x": 2 * x, "y": 2 * y}
        Record(trial.number, 10, 10, "tangent", "", x * x + y * y, 0.0, gradient, sd).write(trial)
        return x * x + y * y

    study = optuna.create_study(sampler=GlocalSampler(seed=0, n_startup_trials=3))
    study.optimize(objective, n_trials=7)
    figure = v.plot_trust(study)
    x, y = traces(figure, "x")[0], traces(figure, "y")[0]
    given = [0, 2, 3, 4, 5, 6]
    assert list(x.x) == list(y.x) == given
    np.testing.assert_allclose(x.y, [1 / (1 + 9)] * 6)
    assert list(y.y) == [1.0] * 6
    withheld = traces(figure, "gradient withheld")[0]
    assert list(withheld.x) == [1] and list(withheld.customdata) == ["Too rough."]
    # The gains of the model behind each proposal: all partials exact and right, so near 1.
    gains = traces(figure, "y")[1]
    assert list(gains.x)[0] == 3 and 0.5 < gains.y[-1] < 1.5
    reasons = traces(figure, "proposal")[0]
    assert list(reasons.y) == [t.user_attrs["glocal:reason"] for t in study.trials]


def test_trust_does_not_trust_what_it_reads(study):
    for text in ("{torn", "[]", '{"x": {"a": 1}, "starts": [["no"], []]}', '{"x": 3}'):
        trial = study.ask({"lr": DISTRIBUTIONS["lr"]})
        study._storage.set_trial_system_attr(trial._trial_id, "glocal:proposal", text)
        study.tell(trial, 1.0)
    assert any("No proposal was made" in t for t in texts(v.plot_trust(study)))
