"""Parts of one panel: traces, error bars, axes, texts.

Colours are those of Okabe & Ito, which colour-blind readers can distinguish. Names come from
storage and are escaped, since plotly reads texts as HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from optuna_glocal.visualization.drawing.figure import GREY, Panel, Sheet

BLACK, VERMILLION = "#000000", "#D55E00"
# Okabe & Ito's without yellow (too pale on white) and vermillion (reserved for forecasts).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", BLACK)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
INTERVAL = 1.96  # standard deviations: 95 % of a normal distribution
_NARROW = 1.6  # a log axis that spans less is ticked like a linear one
APART = 0.02  # share of the horizon between two error bars


def mark(i: int) -> tuple[str, str]:
    """Colour and symbol of series i; no two of the first 36 share both."""
    return COLOURS[i % len(COLOURS)], _SYMBOLS[(i + i // len(COLOURS)) % len(_SYMBOLS)]


def add(figure: Sheet, panel: Panel, x: Iterable[Any], y: Iterable[Any], **about: Any) -> None:
    """Adds a trace, as plain lists, since older plotly.js cannot read packed arrays."""
    trace = {"type": "scatter", "x": _listed(x), "y": _listed(y), **about}
    figure.traces.append((panel, trace))


def _listed(column: Iterable[Any]) -> list[Any]:
    rows = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in rows]


def whisker(
    figure: Sheet,
    panel: Panel,
    at: int | None,
    value: float,
    sd: float,
    colour: str,
    symbol: str,
    name: str,
    shift: int = 0,
) -> None:
    """A point with its error bar at the horizon; the second and later ones a little beyond it."""
    if at is None:
        return
    marker = {"symbol": symbol, "size": 10, "color": colour, "line": {"width": 1, "color": BLACK}}
    bars = {"type": "data", "array": [INTERVAL * sd], "thickness": 2, "width": 5}
    add(
        figure,
        panel,
        [at * (1 + APART * max(0, shift - 1))],
        [value],
        name=name,
        showlegend=not shift,  # the line of the same colour has its own entry
        mode="markers",
        marker=marker,
        error_y={**bars, "color": colour},
    )


def say(figure: Sheet, text: str, panel: Panel = (1, 1), *, corner: bool = False) -> None:
    """A sentence in the middle of a panel, or in its upper left corner."""
    at = {"x": 0.01, "y": 0.98} if corner else {"x": 0.5, "y": 0.5}
    figure.texts.append((panel, {"text": text, "font": {"color": GREY}, **at}))


def head(figure: Sheet, panel: Panel, text: str) -> None:
    """A title above one panel."""
    figure.texts.append((panel, {"text": f"<b>{text}</b>", "x": 0, "y": 1, "yshift": 24}))


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """A log axis with full labels (0.2, 0.5, 1), where plotly would show bare digits."""
    finite = [v for v in values if 0 < v < math.inf]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    if high - low > 4:
        return {"type": "log", "exponentformat": "power", "dtick": 1}
    if min(finite) < max(finite) < _NARROW * min(finite):
        step = _round_step((max(finite) - min(finite)) / 3)
        first, last = math.floor(min(finite) / step), math.ceil(max(finite) / step)
        ticks = [float(f"{k * step:.12g}") for k in range(max(1, first), last + 1)]
        return {"type": "log", "tickvals": ticks, "ticktext": [f"{v:.10g}" for v in ticks]}
    few = max(finite) > 10 * min(finite)
    digits = (1, 2, 5) if few else (1, 1.5, 2, 3, 5, 7)
    ticks = [digit * 10.0**k for k in range(low - 1, high + 1) for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{v:.3g}" for v in ticks]}


def _round_step(width: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above ``width``."""
    power = 10.0 ** math.floor(math.log10(width))
    return max(digit for digit in (1, 2, 5) if digit * power <= width * (1 + 1e-9)) * power


def escaped(text: Any, most: int = 60) -> str:
    """``text`` escaped for plotly's HTML and shortened to ``most`` characters."""
    words = str(text)
    return html.escape(words if len(words) <= most else words[: most - 3] + "...")
