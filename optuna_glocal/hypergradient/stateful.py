"""State that a run is resumed from, as plain tensors and numbers.

What a class names in ``_state`` is all of it that changes while a run goes on. The rest is made
again from the user's objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


class Stateful:
    """Keeps and restores the attributes named in ``_state``.

    These are numbers, text, tensors, other objects of this class, and lists, tuples, sets and
    dicts of them. A list or dict of such objects is restored into the objects that it holds.

    Example:
        >>> class Count(Stateful):
        ...     _state = ("_steps",)
        ...     def __init__(self):
        ...         self._steps = 0
        >>> old, new = Count(), Count()
        >>> old._steps = 3
        >>> new.load_state_dict(old.state_dict())
        >>> new._steps
        3
    """

    _state: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """Copies, which do not change any more: loadable with ``weights_only=True``."""
        return {name.lstrip("_"): plain(getattr(self, name)) for name in self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        for name in self._state:
            held = getattr(self, name)
            setattr(self, name, _restored(held, state[name.lstrip("_")]))


def plain(value: Any) -> Any:
    """A copy of plain tensors and numbers."""
    if isinstance(value, Stateful):
        return value.state_dict()
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


def _restored(held: Any, value: Any) -> Any:
    """``value`` in place of ``held``, in its memory where that is possible."""
    if isinstance(held, Stateful) and value is not None:
        held.load_state_dict(value)
        return held
    if isinstance(held, dict) and held and all(isinstance(h, Stateful) for h in held.values()):
        return {key: _restored(one, value[key]) for key, one in held.items()}
    if isinstance(held, list) and held and all(isinstance(h, Stateful) for h in held):
        return [_restored(one, item) for one, item in zip(held, value, strict=True)]
    if isinstance(held, Tensor) and _are_alike([held], [value]):
        _restored([held], [value])
        return held
    if isinstance(held, set):
        return set(value)
    if _are_alike(held, value):
        with torch.no_grad():
            for old, new in zip(held, value, strict=True):
                old.copy_(new)
        return held
    return plain(value)


def _are_alike(held: Any, value: Any) -> bool:
    """Whether both are lists of tensors of the same shapes."""
    return (
        isinstance(held, list)
        and isinstance(value, list)
        and bool(held)
        and len(held) == len(value)
        and all(
            isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
            for a, b in zip(held, value, strict=True)
        )
    )
