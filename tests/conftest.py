"""Every test starts from the same seeds; Optuna's suites show their assertions."""

import random

import numpy as np
import optuna
import pytest
import torch

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
