"""H Z + ∂g/∂λ on the graph of the user's own loss, and the user's gradients with it.

Two ways stand behind :class:`Products`. The walk along the graph (:mod:`optuna_glocal.graph`)
takes all q rows at once and leaves the backward to torch; :class:`DoubleBackward` differentiates
the graph of the backward once more, row by row, and goes wherever autograd goes. The walk is held
against double backward in the first steps of each graph, and left where they disagree or where
something in the graph has no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.graph.walker import Walker
from optuna_glocal.scheduling import ScheduleError

#: ``loss.backward(retain_graph=...)``, however the caller counts and times it.
RunBackward = Callable[[Tensor, bool], None]

# Batched double backward saves dispatch, not arithmetic: measured faster from four tangents on
# for models under about 50,000 parameters, slower beyond.
_BATCH_FROM, _BATCH_BELOW = 4, 50_000
# By how much, relative, the walk and double backward may differ.
_TOLERANCE = {torch.float64: 1e-9}
_TOLERANCE_SINGLE = 1e-4


class TangentError(RuntimeError):
    """The tangents cannot be carried any further; the sentence says why."""


class DoubleBackward:
    """Row by row through the graph of the backward.

    Args:
        params: θ.
        z: dθ/dλ by parameter, ``(q, *shape)``; read anew in every step.
        leaves: λ that may stand in the loss.
        units: Each leaf's own tangent, ``(q,)``.
        is_shared: Whether gradients are averaged over processes, in ``loss.backward()`` only.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        z: Sequence[Tensor],
        leaves: Mapping[str, Tensor],
        units: Mapping[str, Tensor],
        *,
        is_shared: bool = False,
    ) -> None:
        self._params, self._z = list(params), list(z)
        self._leaves, self._units = dict(leaves), dict(units)
        self._q = len(z[0]) if z else 0
        size = sum(p.numel() for p in params)
        self._batches = self._q >= _BATCH_FROM and size < _BATCH_BELOW
        self._own_gradients: bool | None = False if is_shared else None
        self._verified = 0
        #: Leaves that a loss was seen to depend on.
        self.seen: set[str] = set()

    @property
    def is_settled(self) -> bool:
        """Whether it is known who makes the user's gradients."""
        return self._own_gradients is not None

    def backward(self, loss: Tensor, run: RunBackward, is_zero: bool) -> list[Tensor | None]:
        """The user's gradients into ``p.grad``, bit for bit those of ``loss.backward()``.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``.
            is_zero: Z = 0, which leaves ∂g/∂λ.

        Returns:
            H Z + ∂g/∂λ by parameter, ``(q, *shape)``; ``None`` for zero.

        Raises:
            TangentError: If the graph cannot be differentiated; the gradients are in place.
        """
        plainly = self._own_gradients is not True
        before: list[Tensor | None] = []
        if plainly:
            before = [None if p.grad is None else p.grad.clone() for p in self._params]
            run(loss, True)
        try:
            grads, by_lambda = self.gradients(loss)
        except Exception as error:
            if not plainly:
                run(loss, False)
            raise TangentError(undifferentiable(error)) from error
        if plainly:
            self._verify(before, grads)
        else:
            add_gradients(self._params, grads)
        try:
            return self.products(grads, by_lambda, is_zero)
        except Exception as error:
            raise TangentError(undifferentiable(error)) from error

    def gradients(self, loss: Tensor) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """∂loss/∂θ and ∂loss/∂λ with their graphs."""
        grads = torch.autograd.grad(
            loss, [*self._params, *self._leaves.values()], create_graph=True, allow_unused=True
        )
        n = len(self._params)
        by_lambda = {
            name: grad
            for name, grad in zip(self._leaves, grads[n:], strict=True)
            if grad is not None
        }
        self.seen |= set(by_lambda)
        return list(grads[:n]), by_lambda

    def _verify(self, before: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> None:
        """May our differentiated gradients stand in for torch's own, bit for bit?

        Some backward formulas take another path when a graph of the backward is asked for (GELU,
        group norm), and hooks on parameters (DDP) run only in ``loss.backward()``. So the first
        two steps compute both.
        """
        if self._own_gradients is False:
            return
        hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self._params)
        equal = not hooked and all(
            (p.grad is None and g is None)
            or (old is None and p.grad is not None and g is not None and torch.equal(p.grad, g))
            for p, old, g in zip(self._params, before, grads, strict=True)
        )
        self._verified += 1
        if not equal:
            self._own_gradients = False
        elif self._verified >= 2:
            self._own_gradients = True

    def products(
        self, grads: Sequence[Tensor | None], by_lambda: Mapping[str, Tensor], is_zero: bool
    ) -> list[Tensor | None]:
        """H Z + ∂g/∂λ by parameter: row j is ∇θ of ⟨g, Z_j⟩ + ∂loss/∂λ_j."""
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        if not is_zero:
            for grad, z in zip(grads, self._z, strict=True):
                if grad is not None and grad.requires_grad:
                    outputs.append(grad)
                    weights.append(z)
        for name, grad in by_lambda.items():
            if grad.requires_grad:
                outputs.append(grad)
                weights.append(self._units[name].to(grad))
        if not outputs:
            return [None] * len(self._params)
        if self._batches:
            try:
                return list(self._backward_again(outputs, weights, is_batched=True))
            except RuntimeError:  # some double backward has no batching rule (group norm)
                self._batches = False
        rows = [self._backward_again(outputs, [w[j] for w in weights]) for j in range(self._q)]
        return [
            None
            if all(row[i] is None for row in rows)
            else torch.stack([torch.zeros_like(p) if (r := row[i]) is None else r for row in rows])
            for i, p in enumerate(self._params)
        ]

    def _backward_again(
        self, outputs: list[Tensor], weights: list[Tensor], is_batched: bool = False
    ) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs,
            self._params,
            weights,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=is_batched,
        )


class Products:
    """The walk where it is right, double backward elsewhere.

    Args:
        params: θ.
        z: dθ/dλ by parameter, ``(q, *shape)``; the same storage in every step.
        out: Where H Z + ∂g/∂λ is added, shaped like ``z``.
        leaves: λ that may stand in the loss.
        units: Each leaf's own tangent, ``(q,)``.
        is_shared: Whether gradients are averaged over processes, in ``loss.backward()`` only.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        z: Sequence[Tensor],
        out: Sequence[Tensor],
        leaves: Mapping[str, Tensor],
        units: Mapping[str, Tensor],
        *,
        is_shared: bool = False,
    ) -> None:
        self._out, self._leaves = list(out), dict(leaves)
        self._double = DoubleBackward(params, z, leaves, units, is_shared=is_shared)
        tangents = dict(zip(params, z, strict=True))
        tangents |= {leaf: units[name] for name, leaf in leaves.items()}
        self._walker = Walker(tangents, dict(zip(params, out, strict=True)))
        #: Why the walk is not taken, if it is not.
        self.refusal: str | None = None

    @property
    def seen(self) -> set[str]:
        """Leaves that a loss was seen to depend on."""
        reached = self._walker.leaves
        return self._double.seen | {n for n, leaf in self._leaves.items() if leaf in reached}

    @property
    def is_settled(self) -> bool:
        """Whether the first steps, which compute things twice, are over."""
        return self._walker.is_checked if self.refusal is None else self._double.is_settled

    def backward(self, loss: Tensor, run: RunBackward, is_zero: bool) -> None:
        """``loss.backward()``, bit for bit, and H Z + ∂g/∂λ added to ``out``.

        Args:
            loss: With its graph.
            run: ``loss.backward(retain_graph=...)``.
            is_zero: Z = 0, which leaves ∂g/∂λ.

        Raises:
            TangentError: If the products failed; the user's gradients are in place.
        """
        if not self._start(loss):
            for out, product in zip(
                self._out, self._double.backward(loss, run, is_zero), strict=True
            ):
                if product is not None:
                    out.add_(product.detach())
        else:
            run(loss, not self._walker.is_checked)
            try:
                if self._walker.is_checked:
                    self._walker.down()
                else:
                    self._check(loss, is_zero)
            except Exception as error:
                raise TangentError(undifferentiable(error)) from error
        for leaf in self._leaves.values():
            leaf.grad = None

    def _start(self, loss: Tensor) -> bool:
        if self.refusal is None:
            try:
                self._walker.up(loss)
            except Exception as error:
                self.refuse(words(error))
        return self.refusal is None

    def refuse(self, sentence: str) -> None:
        """Double backward from here on."""
        self.refusal = sentence
        self._walker.forget()

    def _check(self, loss: Tensor, is_zero: bool) -> None:
        """Both ways; double backward's product is the one that counts."""
        before = [out.clone() for out in self._out]
        try:
            self._walker.down()
        except Exception as error:
            self.refuse(words(error))
        walked = [out - old for out, old in zip(self._out, before, strict=True)]
        exact = self._double.products(*self._double.gradients(loss), is_zero)
        for out, old, product in zip(self._out, before, exact, strict=True):
            out.copy_(old if product is None else old + product.detach())
        if self.refusal is not None or all(product is None for product in exact):
            return
        if _agree(walked, exact):
            self._walker.note_check()
        else:
            self.refuse("The walk along the graph and double backward disagree.")


def _agree(walked: Sequence[Tensor], exact: Sequence[Tensor | None]) -> bool:
    """Each row of each parameter, against its own largest entry and the row's largest of all."""
    pairs = [
        (w, torch.zeros_like(w) if e is None else e.detach())
        for w, e in zip(walked, exact, strict=True)
        if w.numel()
    ]
    tops = [_row_sizes(e) for _, e in pairs]
    largest = torch.stack(tops).amax(0)
    for (w, e), top in zip(pairs, tops, strict=True):
        apart = _row_sizes(w - e)
        allowed = _TOLERANCE.get(w.dtype, _TOLERANCE_SINGLE) * torch.maximum(top, 0.01 * largest)
        if not bool((apart <= allowed).all()):
            return False
    return True


def _row_sizes(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1).abs().amax(1).cpu().double()


def add_gradients(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """What torch's own accumulation does: into ``.grad``, in the parameter's own layout."""
    given = [g for g in grads if g is not None]
    shared = len({g.data_ptr() for g in given}) < len(given)
    for p, grad in zip(params, grads, strict=True):
        if grad is None:
            continue
        g = grad.detach()
        if p.grad is not None:
            p.grad += g
        elif shared or g.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(g)
        else:
            p.grad = g


def undifferentiable(error: BaseException) -> str:
    """A sentence for what has no second derivative, with the cure where one is known."""
    cure = ""
    if "attention" in str(error):
        cure = " Set torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the model."
    return f"The graph could not be differentiated twice: {words(error)}.{cure}"


def words(error: BaseException) -> str:
    """One line for the user: our own sentences as they are, others with their type."""
    text = str(error).strip().split("\n")[0]
    ours = isinstance(error, (TangentError, ScheduleError))
    return text if ours else f"{type(error).__name__}: {text}"
