"""A replacement in torch that lasts as long as somebody needs it."""

from __future__ import annotations

import abc
import threading
from typing import ClassVar


class SharedPatch(abc.ABC):
    """Replaces something of torch until :meth:`remove`.

    Several of one kind may be in effect at once, in one or several threads: the last one to go
    puts back what torch had.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _users: ClassVar[int] = 0

    def __init__(self) -> None:
        self._is_in, cls = True, type(self)
        with self._lock:
            cls._users += 1
            self._replace()

    def remove(self) -> None:
        """Ends this one's effect; after the last one what was replaced is torch's own again."""
        cls = type(self)
        with self._lock:
            if self._is_in:
                self._is_in, cls._users = False, cls._users - 1
            if cls._users == 0:
                self._put_back()

    @staticmethod
    @abc.abstractmethod
    def _replace() -> None:
        """Puts ours in place; to do so again does no harm."""

    @staticmethod
    @abc.abstractmethod
    def _put_back() -> None:
        """Puts torch's own in place."""
