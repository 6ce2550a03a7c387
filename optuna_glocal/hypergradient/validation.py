"""The user's validation closure, checked and run without any effect on training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.distributed import local, reshard
from optuna_glocal.hypergradient.gradient_by_trained import gradient_by_trained
from optuna_glocal.hypergradient.invisible.user_hooks import silenced
from optuna_glocal.hypergradient.isolation import Isolation
from optuna_glocal.hypergradient.module_search import modules_holding, modules_of
from optuna_glocal.hypergradient.stateful import Stateful

# What autograd says of a tensor that was computed without a graph.
_NO_GRAPH = "does not require grad"


class Validation(Stateful):
    """Evaluates ``closure`` without any effect on training.

    Args:
        closure: Returns the validation loss as a scalar tensor with its graph.
        params: The parameters that are trained, whose modules are protected even where the search
            through what ``closure`` refers to does not find them.

    Raises:
        TypeError: If ``closure`` is not callable.
    """

    _state = ("count", "not_finite", "_isolation")

    def __init__(self, closure: Callable[[], Tensor], params: Sequence[Tensor] = ()) -> None:
        if not callable(closure):
            raise TypeError(
                f"validation_loss: expected a function without arguments, got {closure!r}. Give "
                "for example lambda: criterion(model(x_val), y_val)."
            )
        self._closure = closure
        #: Modules that the closure refers to, and those of ``params``.
        self.modules = modules_of(closure)
        found = {id(p) for module in self.modules for p in module.parameters()}
        if missing := [p for p in params if id(p) not in found]:
            self.modules += modules_holding(missing)
        self._isolation = Isolation(self.modules)
        self._is_light, self._is_sharded = False, any(local(p) is not p for p in params)
        # Whether the closure differentiates on its way to the loss: residuals of an equation, an
        # inner step.
        self._needs_graph = False
        #: Between the processes of the training, if they tune together.
        self.agreement = Agreement()
        #: How many losses were computed as numbers, and how many of them were not finite.
        self.count = self.not_finite = 0

    def lighten(self) -> None:
        """Restores numpy's and python's random states only if the next evaluation draws from them.

        Saves time in self-tuning trials, which evaluate at every other step.
        """
        self._is_light = True

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        if self._is_sharded:
            reshard(self.modules)
        with self._isolation:
            yield
        if self._is_sharded:
            reshard(self.modules)

    @contextlib.contextmanager
    def loss(
        self,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Iterator[Tensor]:
        """The loss with its graph; what the closure has changed is restored on leaving.

        Args:
            around: Makes a context for the evaluation alone.
        """
        with self._isolated(), torch.enable_grad():
            with around():
                loss = self._evaluated()
            yield loss

    def gradient(self, params: Sequence[Tensor]) -> tuple[float, Sequence[Tensor | None] | None]:
        """The loss as a number and ∇L by parameter; ``None`` for ∇L if the loss is not finite.

        Of several processes, the mean of their losses, and each one's own ∇L.
        """
        v: Sequence[Tensor | None] | None = None

        def differentiated() -> list[float]:
            nonlocal v
            with self._isolated(), torch.enable_grad():
                loss = self._evaluated()
                value = loss.item()
                if math.isfinite(value):
                    with silenced(params):
                        v = gradient_by_trained(loss, params)
            return [value]

        (value,) = self.agreement.numbers(differentiated)
        return value, v if self._is_finite(value) else None

    def _evaluated(self) -> Tensor:
        loss = self._checked(self._closure(), graph=True)
        if self._is_light and self._isolation.guards_host_rng:
            drawn = self._isolation.has_drawn_from_host()
            self._is_light, self._isolation.guards_host_rng = False, drawn
        return loss

    def value(self) -> float:
        """The loss as a number, without a graph; of several processes the mean of theirs."""
        try:
            value = self.own_value()
        except Exception:
            self.agreement.mean([math.nan])
            raise
        (value,) = self.agreement.mean([value])
        self._is_finite(value)
        return value

    def own_value(self) -> float:
        """The loss of this process as a number, without a graph unless the closure needs one."""
        if not self._needs_graph:
            try:
                with self._isolated(), torch.no_grad():
                    return self._checked(self._closure(), graph=False).item()
            except RuntimeError as error:
                if _NO_GRAPH not in str(error):
                    raise
        with self._isolated(), torch.enable_grad():
            value = self._checked(self._closure(), graph=False).item()
        self._needs_graph = True
        return value

    def _is_finite(self, value: float) -> bool:
        self.count += 1
        self.not_finite += not math.isfinite(value)
        return math.isfinite(value)

    @staticmethod
    def _checked(loss: object, *, graph: bool) -> Tensor:
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"validation_loss: expected a scalar tensor, got {type(loss).__name__} {loss!r}. "
                "Return the loss tensor itself, without .item() or float()."
            )
        if loss.numel() != 1:
            raise ValueError(
                f"validation_loss: expected a scalar tensor, got shape {tuple(loss.shape)}. "
                "Return the mean over the validation data."
            )
        if graph and not loss.requires_grad:
            raise ValueError(
                "validation_loss: expected a tensor that is differentiable in the model's "
                f"parameters, got a detached one ({loss!r}). Do not compute it under "
                "torch.no_grad() and do not detach it."
            )
        return loss if loss.ndim == 0 else loss.reshape(())
