"""Workers of one PostgreSQL study, each of whose trials two processes train.

``GLOCAL_WORKERS=8 pytest tests/system/test_parallel_ranks.py`` is the full size: 16 processes.
"""

import os

import optuna
import pytest
import rank_studies
import servers
import torch.distributed as dist
import two_ranks

from optuna_glocal import Record, best_hyperparameters
from optuna_glocal.storage.keys import SCHEDULE

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
WORKERS = int(os.environ.get("GLOCAL_WORKERS", "2"))
TRIALS = 2


def test_every_trial_of_two_processes_leaves_one_record():
    servers.require(servers.missing("postgresql"))
    server = servers.Server("postgresql").start()
    try:
        two_ranks.start(rank_studies.main, server.url, WORKERS, TRIALS)
        study = optuna.load_study(study_name=rank_studies.NAME, storage=server.storage())
        trials, best = study.trials, best_hyperparameters(study)
    finally:
        server.close()
    assert [t.number for t in trials] == list(range(WORKERS * TRIALS))
    for trial in trials:
        record = Record.read(trial)
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert (record.number, record.steps, record.tuned) == (trial.number, 24, ("lr",))
        assert record.value == trial.value
        assert any(key.startswith(SCHEDULE) for key in trial.user_attrs)
    assert len({tuple(t.params.values()) for t in trials}) == len(trials)
    assert set(best) == {"lr", "momentum"}
