"""The rule of ``torch.optim.Rprop``."""

import torch
from step_laws import StepLaws


class TestRprop(StepLaws):
    CASES = {
        "rprop": (torch.optim.Rprop, {}),
        "rprop clamped": (torch.optim.Rprop, {"step_sizes": (1e-6, 0.052), "maximize": True}),
    }  # fmt: skip
