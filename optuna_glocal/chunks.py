"""Long texts in user attributes: in chunks that a reader puts together, or knows to be torn."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Protocol

# Optuna's own chunks stay under 2046 characters, once RDBStorage's limit; MySQL's is 65,535 bytes.
CHUNK = 1900
MOST_CHUNKS = 64


class TrialLike(Protocol):
    """What is asked of a trial: a number and user attributes."""

    @property
    def number(self) -> int: ...  # noqa: D102

    def set_user_attr(self, key: str, value: Any) -> None: ...  # noqa: D102


def put(trial: TrialLike, key: str, text: str) -> None:
    """Stores ``text`` under ``key``, in chunks ``key:i`` if it is long."""
    if len(text) <= CHUNK:
        trial.set_user_attr(key, text)
        return
    pieces = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    mark = f"{len(pieces)}/{zlib.crc32(text.encode()):08x}|"
    for i, piece in enumerate(pieces):
        trial.set_user_attr(f"{key}:{i}", mark + piece)
    trial.set_user_attr(key, mark)


def get(attrs: Mapping[str, Any], key: str) -> str | None:
    """What :func:`put` stored; ``None`` if absent or torn (another writer, a kill between)."""
    text = attrs.get(key)
    if not isinstance(text, str) or not text.endswith("|") or len(text) > 16:
        return text if isinstance(text, str) else None
    count = text.split("/")[0]
    if not count.isdecimal() or not 0 < int(count) <= MOST_CHUNKS:
        return None
    pieces = [attrs.get(f"{key}:{i}") for i in range(int(count))]
    if not all(isinstance(piece, str) and piece.startswith(text) for piece in pieces):
        return None
    whole = "".join(str(piece)[len(text) :] for piece in pieces)
    return whole if f"{count}/{zlib.crc32(whole.encode()):08x}|" == text else None
