"""Optimizers step in float64, their counters included."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _counters_in_float64():
    """Or torch would keep mu_product and eta in float32, whose rounding hides differences."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
