"""Every rule is compared in float64."""

import pytest


@pytest.fixture(autouse=True)
def _double_precision(double_precision):
    pass
