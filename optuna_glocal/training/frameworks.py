"""What training loops of frameworks have in common.

A framework calls ``loss.backward()`` itself, and may hand its whole training step to the optimizer
as a closure. Nothing here knows any framework's API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from optuna_glocal.hypergradient._torch import scaler_flags, version_of
from optuna_glocal.hypergradient.distributed import own_part
from optuna_glocal.hypergradient.errors import TangentError

if TYPE_CHECKING:
    from optuna_glocal.training.callback import GlocalCallback


class Routed(TorchFunctionMode):
    """Inside, and in this thread only, ``loss.backward()`` calls ``backward(loss)``.

    A backward that asks for more than ``retain_graph=True`` (``inputs=...``) stays torch's own.
    """

    def __init__(self, backward: Callable[..., None]) -> None:
        super().__init__()
        self._backward = backward

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is Tensor.backward and len(args) == 1:
            asked = {k: o for k, o in options.items() if o is not None and o is not False}
            if not asked.keys() - {"retain_graph"}:
                return self._backward(args[0], **asked)
        return func(*args, **options)


def after_closure(
    optimizer: torch.optim.Optimizer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    act: Callable[[], None],
    refuse: Callable[[str], None],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Calls ``act`` when the gradients that ``optimizer.step(*args, **kwargs)`` uses are ready.

    Without a closure that is at once. With one it is after the closure: every optimizer of
    ``torch.optim`` but LBFGS calls it once and before anything else. ``refuse`` is called with a
    sentence where an optimizer does otherwise.

    Returns:
        The step's arguments with the closure replaced; ``None`` without one.
    """
    closure = next((a for a in (*args, *kwargs.values()) if callable(a)), None)
    if closure is None:
        act()
        return None
    params = [p for group in optimizer.param_groups for p in group["params"]]
    versions = [version_of(p) for p in params]
    calls = 0

    def closure_and_act() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 or versions != [version_of(p) for p in params]:
            refuse("optimizer.step calls its closure in the midst of its own work.")
        result = closure()
        act()
        return result

    def replaced(a: Any) -> Any:
        return closure_and_act if a is closure else a

    return tuple(map(replaced, args)), {k: replaced(v) for k, v in kwargs.items()}


def is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused step under GradScaler, which is told of infinities, will do nothing.

    Raises:
        TangentError: If it is to unscale the gradients as well.
    """
    found_inf, grad_scale = scaler_flags(optimizer)
    if isinstance(found_inf, Tensor) and found_inf.item() > 0:
        return True
    if grad_scale is not None:
        raise TangentError(
            "A fused optimizer unscales its gradients inside the step, unseen; call "
            "scaler.unscale_(optimizer) before scaler.step(optimizer)."
        )
    return False


def checkpoint_of(glocal: GlocalCallback) -> dict[str, Any]:
    """What a framework's checkpoint holds of the callback.

    The model in it may be the averaged one, so the raw weights stand beside the callback's state.
    One process writes it, so where the model is sharded it has the states of all, each with its
    own shards; to be called on every rank there.
    """
    return glocal.of_all_ranks(lambda: {**glocal.state_dict(), "raw": glocal.raw_weights()})


def own_checkpoint(state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What :func:`checkpoint_of` has given, or this process's part of it.

    Raises:
        ValueError: If the model was sharded over another number of processes.
    """
    return own_part(state["ranks"]) if state is not None and "ranks" in state else state


def load_checkpoint(glocal: GlocalCallback, state: Mapping[str, Any]) -> None:
    """Goes on from :func:`own_checkpoint`, after the model of the checkpoint was loaded."""
    glocal.load_state_dict(state)
    glocal.load_raw_weights(state.get("raw"))
