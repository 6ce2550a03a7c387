"""Long texts in user attributes, in chunks of which a reader knows whether all are there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

# What one attribute may hold, as JSON: MySQL takes 65,535 bytes, all others more. (Optuna's own
# chunks stay under 2046 characters, once the limit of RDBStorage, but every chunk costs a
# transaction.)
_MOST_QUOTED = 65_000
# Characters of a chunk, each of which JSON may double.
CHUNK = _MOST_QUOTED // 2
MOST_CHUNKS = 4
# Bytes that fit into one attribute when encoded in base64.
MOST_BYTES = 45 * 1024
# A mark is "number of chunks/checksum|"; it stands under the key and before each chunk.
_LONGEST_MARK = 16
# What may be raised by reading text that anyone may have written as if it were ours.
BROKEN = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


class TrialLike(Protocol):
    """What is used of a trial: its number and its user attributes."""

    @property
    def number(self) -> int: ...  # noqa: D102

    def set_user_attr(self, key: str, value: Any) -> None: ...  # noqa: D102


def put(trial: TrialLike, key: str, text: str) -> None:
    """Stores ``text`` under ``key``; if long, in chunks under ``{key}:0``, ``{key}:1``, ...

    Args:
        trial: The running trial.
        key: The attribute.
        text: JSON, or any other text that does not end with ``|`` as the mark of chunks does.
    """
    if len(json.dumps(text)) <= _MOST_QUOTED:
        trial.set_user_attr(key, text)
        return
    pieces = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    mark = f"{len(pieces)}/{zlib.crc32(text.encode()):08x}|"
    for i, piece in enumerate(pieces):
        trial.set_user_attr(f"{key}:{i}", mark + piece)
    trial.set_user_attr(key, mark)


def get(attrs: Mapping[str, Any], key: str) -> str | None:
    """What :func:`put` stored; ``None`` if it is absent, too long or incomplete.

    It is incomplete where a worker died between two chunks, or two workers wrote at once.
    """
    text = attrs.get(key)
    if not isinstance(text, str) or len(text) > CHUNK * MOST_CHUNKS:
        return None
    if not text.endswith("|") or len(text) > _LONGEST_MARK:
        return text
    count = text.split("/")[0]
    if not count.isdecimal() or not 0 < int(count) <= MOST_CHUNKS:
        return None
    pieces = [attrs.get(f"{key}:{i}") for i in range(int(count))]
    most = CHUNK + _LONGEST_MARK
    if not all(isinstance(p, str) and p.startswith(text) and len(p) <= most for p in pieces):
        return None
    whole = "".join(str(piece)[len(text) :] for piece in pieces)
    return whole if f"{count}/{zlib.crc32(whole.encode()):08x}|" == text else None
