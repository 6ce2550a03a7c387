"""Tells of the steps of given LR schedulers, for which torch has no hooks.

``step`` is replaced in the scheduler's class, since what is set on the object itself would be in
its ``state_dict``. Steps of other schedulers go straight through.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

_lock = threading.Lock()
_watched: weakref.WeakKeyDictionary[LRScheduler, AbstractContextManager[None]]
_watched = weakref.WeakKeyDictionary()
_plain: dict[type, Any] = {}


def watch(schedulers: Iterable[LRScheduler], around: AbstractContextManager[None]) -> None:
    """From now on each step of ``schedulers`` runs inside ``around``, which can be entered again.

    Args:
        schedulers: Each with those inside it.
        around: Replaces what they were watched by before.
    """
    with _lock:
        for scheduler in schedulers:
            _watched[scheduler] = around
            for cls in type(scheduler).__mro__:
                if "step" in vars(cls) and cls not in _plain:
                    _plain[cls] = cls.step  # type: ignore[attr-defined]
                    cls.step = _wrapped(_plain[cls])  # type: ignore[attr-defined]


def forget(around: AbstractContextManager[None]) -> None:
    """Ends :func:`watch`; after the last one torch has its own functions back."""
    with _lock:
        for scheduler, held in list(_watched.items()):
            if held is around:
                del _watched[scheduler]
        if not _watched:
            for cls, plain in _plain.items():
                cls.step = plain  # type: ignore[attr-defined]
            _plain.clear()


def _wrapped(plain: Any) -> Any:
    @functools.wraps(plain)
    def step(self: LRScheduler, *args: Any, **kwargs: Any) -> Any:
        around = _watched.get(self)
        if around is None:
            return plain(self, *args, **kwargs)
        with around:
            return plain(self, *args, **kwargs)

    return step
