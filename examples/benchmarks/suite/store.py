"""Results by key in one file of JSON lines, so that a stopped suite goes on where it was.

A line is written as soon as its run is done. Plain trials are stored by their hyperparameters, not
by the peer that asked for them: every peer that trains the same trial shares it. Lines of several
files can be put together with ``cat``; of a key that occurs twice the last line counts.
"""

import json
import pathlib


class Missing(KeyError):
    """A result that is not stored and is not to be computed."""


class Store:
    """A dictionary that computes what it lacks and appends it to its file.

    Args:
        path: The file; made with its folder when the first result is stored.
        is_frozen: Whether missing results raise ``Missing`` instead of being computed.
    """

    def __init__(self, path, is_frozen=False):
        self.path, self.is_frozen = pathlib.Path(path), is_frozen
        self.results = {}
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.splitlines():
            try:
                key, value = json.loads(line)
            except ValueError:  # a line that was cut off when its process was killed
                continue
            self.results[key] = value
        if text and not text.endswith("\n"):
            self.path.write_text(text + "\n")

    def get(self, key, compute, *args, **options):
        key = key if isinstance(key, str) else name_of(key)
        if key not in self.results:
            if self.is_frozen:
                raise Missing(key)
            self.put(key, compute(*args, **options))
        return self.results[key]

    def longest(self, key, budget, compute, *args):
        """Rows of a study: one that went on longer serves, a shorter one is run anew."""
        key = name_of(key)
        kept = self.results.get(key)
        if kept is None or (kept["budget"] < budget and not self.is_frozen):
            if self.is_frozen:
                raise Missing(key)
            self.put(key, {"budget": budget, "rows": compute(*args)})
        return self.results[key]["rows"]

    def put(self, key, value):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")
        self.results[key] = value


def name_of(parts):
    """One line of text for a tuple of names, numbers and dictionaries of numbers."""
    return " | ".join(
        ", ".join(f"{k}={v!r}" for k, v in sorted(part.items()))
        if isinstance(part, dict)
        else str(part)
        for part in parts
    )
