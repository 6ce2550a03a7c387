"""Optuna's own published contract for samplers, inherited whole: 66 + 44 + 16 cases."""

import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from optuna_glocal import GlocalSampler


class TestBasic(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: GlocalSampler(seed=0, warn_independent_sampling=False)


class TestRelative(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        # No startup: the suite asks for relative proposals from the first trial on.
        return lambda: GlocalSampler(seed=0, n_startup_trials=0)


class TestMultiObjective(MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: GlocalSampler(seed=0)
