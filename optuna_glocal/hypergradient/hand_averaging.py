"""Whether a loop averages its gradients over several processes itself.

Such a loop calls ``dist.all_reduce`` on each gradient, in the place of DistributedDataParallel,
which would tell that the processes train one model together. ``torch.distributed`` alone does not
tell: each process may as well train a model of its own. But averaged gradients are the same on all
processes, and were not before. In the first step each process whose gradients were changed in
another way than by one factor tells the others what they were, and looks what theirs were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import accumulation_hooks, backward_hooks
from optuna_glocal.hypergradient.distributed import Ranks, all_ranks

# The loop averages where the cosine of the gradients before and after is smaller than this.
_PARALLEL = 1 - 1e-4
# Relative differences: of the same gradients, and at least of others.
_SAME, _OTHERS = 1e-5, 1e-3
# Seconds to wait for the others, who come at once where they have just averaged together.
_PATIENCE = 10.0

UNANSWERED = (
    "torch.distributed runs {size} processes, and this loop changes its gradients before a step. "
    "If the processes train one model together, the hyperparameters move on this one alone. Run "
    "the same script with its callback on every rank (with a trial: a TorchDistributedTrial)."
)


class HandAveraging:
    """Looks at the first step that is made with finite gradients.

    Args:
        params: The optimizer's parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = [p for p in params if p.requires_grad]
        self._before: list[Tensor | None] | None = None
        self._all = all_ranks(self._params) if self._params else None
        #: Why it is not known; empty where it is.
        self.sentence = ""

    @property
    def is_possible(self) -> bool:
        """Whether there are other processes, and the first step is still to come."""
        return self._all is not None

    def note(self) -> None:
        """A backward was made; the gradients are as it has left them."""
        self._before = [None if p.grad is None else p.grad.detach().clone() for p in self._params]

    def ranks(self) -> Ranks | None:
        """Before the step: the processes that have averaged their gradients, if they have."""
        everyone, before = self._all, self._before
        if everyone is None or before is None:
            return None
        pairs = [(b, p.grad) for b, p in zip(before, self._params, strict=True)]
        own, after = (_figures([pair[i] for pair in pairs]) for i in (0, 1))
        if not all(map(math.isfinite, (*own, *after))):
            return None
        self._all = self._before = None
        if not self._has_hooks() and _cosine(pairs) > _PARALLEL:
            return None
        told = everyone.arrive("gradients", json.dumps([own, after]))(_PATIENCE)
        if len(told) < everyone.size:
            self.sentence = UNANSWERED.format(size=everyone.size)
            return None
        figures = [json.loads(each) for each in told.values()]
        is_same = all(_near(after, theirs, _SAME) for _, theirs in figures)
        differed = not all(_near(own, theirs, _OTHERS) for theirs, _ in figures)
        return everyone if is_same and (differed or self._has_hooks()) else None

    def _has_hooks(self) -> bool:
        """Hooks may average within the backward, so that there is no gradient before."""
        return any(backward_hooks(p) or accumulation_hooks(p) for p in self._params)


def _figures(grads: Sequence[Tensor | None]) -> list[float]:
    """Size and sum of a gradient."""
    held = [g.detach().double() for g in grads if g is not None]
    if not held:
        return [0.0, 0.0]
    both = torch.stack([torch.stack([g.square().sum(), g.sum()]) for g in held]).sum(0)
    square, total = both.tolist()
    return [math.sqrt(square), total]


def _cosine(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> float:
    held = [(a.double(), b.detach().double()) for a, b in pairs if a is not None and b is not None]
    if not held:
        return 1.0
    rows = [torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]) for a, b in held]
    product, square, other = torch.stack(rows).sum(0).tolist()
    size = math.sqrt(square * other)
    return product / size if size > 0 else 1.0


def _near(own: Sequence[float], theirs: Sequence[float], share: float) -> bool:
    """Whether sizes and sums differ by no more than a share of the size."""
    return all(abs(a - b) <= share * max(own[0], 1e-300) for a, b in zip(own, theirs, strict=True))
