"""What one optimizer step did to the parameters, and what that does to a loss.

Of several processes, each one's part of the sums over all parameters: of shards that it alone
holds, all; of copies that every rank holds, one share of their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient._torch import norm_each, subtract_each_
from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.distributed import local
from optuna_glocal.hypergradient.optimizers import group_entry
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.position import Position

# Parameters whose distances are computed at once: a copy of them is made for it.
_BLOCK = 1 << 20


class StepChange(Stateful):
    """θ_{t+1} - θ_t of the param groups whose learning rates move; one copy of their parameters.

    Made before the step; :meth:`end` after it.

    Args:
        params: All trainable parameters, in the order of the gradients to come.
        optimizer: The user's optimizer.
        position: Which learning rate moves which group.
        agreement: Between the processes of the training.
    """

    _state = ("_minus", "rates", "_factors")

    @torch.no_grad()
    def __init__(
        self,
        params: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        position: Position,
        agreement: Agreement,
    ) -> None:
        at = {id(p): j for j, p in enumerate(params)}
        self._shares = list(position.by_group().items())
        groups = [optimizer.param_groups[i]["params"] for i, _ in self._shares]
        self._places = [[at[id(p)] for p in group if id(p) in at] for group in groups]
        self._members = [[local(params[j]) for j in places] for places in self._places]
        weights = agreement.shares(params)
        self._weights = [
            None if weights is None else [weights[j] for j in p] for p in self._places
        ]
        self._minus = [[p.detach().clone() for p in members] for members in self._members]
        #: lr in force by param group, and its share in what it would be without a schedule.
        self.rates = {i: group_entry(optimizer.param_groups[i], "lr") for i, _ in self._shares}
        bases = position.bases()
        self._factors = [self.rates[i] / bases[i, "lr"] for i, _ in self._shares]

    @torch.no_grad()
    def end(self) -> None:
        """The step was made."""
        for minus, members in zip(self._minus, self._members, strict=True):
            if members:
                subtract_each_(minus, members)

    @torch.no_grad()
    def products(self, v: Sequence[Tensor | None]) -> list[Tensor]:
        """⟨v, θ_{t+1} - θ_t⟩ by param group, 0-dim, without waiting for a GPU.

        Args:
            v: A gradient of some loss in the order of the parameters.
        """
        out = []
        for places, minus, weights in zip(self._places, self._minus, self._weights, strict=True):
            dots = [_dot(v[j], m) for j, m in zip(places, minus, strict=True)]
            if weights is not None:
                dots = [d if d is None else d * w for d, w in zip(dots, weights, strict=True)]
            found = [dot for dot in dots if dot is not None]
            out.append(_total(found))
        return out

    @torch.no_grad()
    def squares(self, start: Sequence[Tensor]) -> list[Tensor]:
        """|θ_{t+1} - θ_t|² and |θ_{t+1} - θ_0|² by param group, 0-dim.

        Args:
            start: θ_0 in the order of the parameters.
        """
        out = []
        each = zip(self._places, self._minus, self._members, self._weights, strict=True)
        for places, minus, members, weights in each:
            first = [start[j] for j in places]
            out += [
                _square(_norms(minus), weights),
                _square([n for block in _blocks(members, first) for n in _norms(block)], weights),
            ]
        return out

    def distances(self, squares: Sequence[float]) -> dict[int, tuple[float, float]]:
        """:meth:`squares` as numbers, by the param group's index."""
        pairs = zip(squares[::2], squares[1::2], strict=True)
        return {i: pair for (i, _), pair in zip(self._shares, pairs, strict=True)}

    def by_name(
        self, products: Sequence[float], *, at_full_rate: bool = False
    ) -> dict[str, float]:
        """dL / d log λ by learning rate, from :meth:`products` as numbers.

        Args:
            products: By param group.
            at_full_rate: Of a step without a schedule's factor, as far as steps are proportional
                to the rate.
        """
        h: dict[str, float] = {}
        for (_, shares), product, f in zip(self._shares, products, self._factors, strict=True):
            for name, share in shares.items():
                value = product * share / (f if at_full_rate and f > 0 else 1.0)
                h[name] = h.get(name, 0.0) + value
        return h


def _dot(v: Tensor | None, minus: Tensor) -> Tensor | None:
    if v is None:
        return None
    v = local(v)
    v = v.to_dense() if v.is_sparse else v
    if minus.dtype in (torch.float32, torch.float64) and v.dtype == minus.dtype:
        return torch.dot(v.flatten(), minus.flatten())
    return torch.dot(v.flatten().float(), minus.flatten().float())


def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(norm_each(list(tensors))) if tensors else []


def _blocks(tensors: Sequence[Tensor], first: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The differences of the two, of so many tensors at a time that they take little memory."""
    block: list[Tensor] = []
    size = 0
    for j, t in enumerate(tensors):
        block.append(t.detach().clone())
        size += t.numel()
        if size >= _BLOCK or j == len(tensors) - 1:
            begin = j + 1 - len(block)
            subtract_each_(block, [f.to(t.device) for f in first[begin : j + 1]])
            yield block
            block, size = [], 0


def _square(norms: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    if not norms:
        return torch.zeros(())
    first = norms[0]
    squares = torch.stack([n.to(first.device, torch.float32) for n in norms]).square()
    if weights is None:
        return squares.sum()
    return torch.stack([s * w for s, w in zip(squares, weights, strict=True)]).sum()


def _total(minus: Sequence[Tensor]) -> Tensor:
    if not minus:
        return torch.zeros(())
    first = minus[0]
    return -torch.stack([dot.to(first.device, first.dtype) for dot in minus]).sum()
