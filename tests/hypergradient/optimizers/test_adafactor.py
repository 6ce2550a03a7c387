"""The rule of ``torch.optim.Adafactor``."""

import pytest
import torch
from step_laws import check_matrix_step

CASES = {
    "adafactor": {"lr": 0.05, "weight_decay": 0.1, "d": 1.1},
    "adafactor maximize": {"maximize": True, "eps": (1e-3, 1e-3), "foreach": True, "d": 1.1},
    # Both floors in force.
    "adafactor eps": {"eps": (0.8, 3.0), "d": 1.1},
}
# A matrix, a vector, a tensor of three axes and a number.
SHAPES = [(4, 3), (3,), (2, 3, 4), ()]


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", CASES)
def test_tangents_are_the_derivative_of_the_real_step(name, steps):
    check_matrix_step(torch.optim.Adafactor, CASES[name], SHAPES, steps)
