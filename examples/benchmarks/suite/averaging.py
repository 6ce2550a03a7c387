"""Weight averages that a peer keeps by itself."""

import contextlib

import torch

# avg += k / (t + k) (θ - avg): about the newest t / k steps count. Two, as the callback keeps two.
FORGETTING = (12.0, 3.0)


class Averages:
    """Polynomial-decay averages of the parameters, one for each ``k``."""

    def __init__(self, params, ks=FORGETTING):
        self.params, self.ks, self.steps = list(params), ks, 0
        self.means = [[p.detach().clone() for p in self.params] for _ in ks]

    @torch.no_grad()
    def update(self):
        self.steps += 1
        for k, mean in zip(self.ks, self.means, strict=True):
            torch._foreach_lerp_(mean, self.params, k / (self.steps + k))

    @contextlib.contextmanager
    def swapped(self, mean):
        """Inside, the model holds the average ``mean``."""
        kept = [p.detach().clone() for p in self.params]
        self._put(mean)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values):
        for p, v in zip(self.params, values, strict=True):
            p.copy_(v)
