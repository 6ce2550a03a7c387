"""What every figure is made of: panels, traces, whiskers, axes, words.

Colours are those of Okabe & Ito, told apart by colour-blind readers. Names come from storage and
are escaped, since plotly reads its texts as HTML. Plotly is imported only here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

BLACK, GREY, VERMILLION = "#000000", "#767676", "#D55E00"
# Okabe & Ito's, less yellow (too pale on white) and vermillion (kept for forecasts).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", BLACK)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
_INTERVAL = 1.96  # 95 % of a normal distribution
Figure = Any  # plotly.graph_objects.Figure, which need not be installed
Panel = tuple[int, int]


def mark(i: int) -> tuple[str, str]:
    """Colour and symbol of the i-th of many: no two of the first 36 share both."""
    return COLOURS[i % len(COLOURS)], _SYMBOLS[(i + i // len(COLOURS)) % len(_SYMBOLS)]


def imported(module: str) -> Any:
    """An optional module, or an error that says how to get it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"optuna_glocal.visualization needs {module}, which is not installed: "
            "pip install optuna_glocal[dashboard]"
        ) from error


def subplots(rows: int, columns: int, **options: Any) -> Figure:
    """A figure of empty panels in the house\'s style."""
    figure = imported("plotly.subplots").make_subplots(rows=rows, cols=columns, **options)
    figure.update_layout(
        template="plotly_white",
        # At the figure's own bottom, where no height can make it cover an axis.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0},
        margin={"t": 90, "b": 110},
    )
    figure.update_xaxes(showline=True, linecolor=GREY, ticks="outside", title_standoff=5)
    figure.update_yaxes(showline=True, linecolor=GREY, ticks="outside", zerolinecolor=GREY)
    return figure


def add(figure: Figure, panel: Panel, x: Iterable[Any], y: Iterable[Any], **about: Any) -> None:
    """One trace; plain lists, since older plotly.js cannot read packed arrays."""
    trace = {"type": "scatter", "x": _listed(x), "y": _listed(y), **about}
    figure.add_trace(trace, row=panel[0], col=panel[1])


def _listed(column: Iterable[Any]) -> list[Any]:
    rows = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in rows]


def whisker(
    figure: Figure,
    panel: Panel,
    at: int | None,
    value: float,
    sd: float,
    colour: str,
    symbol: str,
    name: str,
    shift: int = 0,
) -> None:
    """A point with its interval, at the horizon; the second and later ones a little beyond."""
    if at is None:
        return
    marker = {"symbol": symbol, "size": 10, "color": colour, "line": {"width": 1, "color": BLACK}}
    bars = {"type": "data", "array": [_INTERVAL * sd], "thickness": 2, "width": 5}
    add(
        figure,
        panel,
        [at * (1 + 0.015 * max(0, shift - 1))],
        [value],
        name=name,
        showlegend=not shift,  # the line of the same colour has its own entry
        mode="markers",
        marker=marker,
        error_y={**bars, "color": colour},
    )


def say(figure: Figure, text: str, panel: Panel = (1, 1), *, corner: bool = False) -> None:
    """A sentence in the middle of a panel, or in its upper corner."""
    at = {"x": 0.01, "y": 0.98} if corner else {"x": 0.5, "y": 0.5}
    figure.add_annotation(
        text=text,
        showarrow=False,
        font={"color": GREY},
        xref="x domain",
        yref="y domain",
        row=panel[0],
        col=panel[1],
        **at,
    )


def head(figure: Figure, panel: Panel, text: str) -> None:
    """A title above one panel."""
    figure.add_annotation(
        text=f"<b>{text}</b>",
        showarrow=False,
        x=0,
        y=1,
        yshift=24,
        xref="x domain",
        yref="y domain",
        row=panel[0],
        col=panel[1],
    )


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """A log axis with whole labels (0.2, 0.5, 1): plotly's own are bare digits."""
    finite = [v for v in values if 0 < v < math.inf]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    if high - low > 4:
        return {"type": "log", "exponentformat": "power", "dtick": 1}
    ticks = [digit * 10.0**k for k in range(low, high + 1) for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{v:.3g}" for v in ticks]}


def escaped(text: Any, most: int = 60) -> str:
    """Safe as plotly's HTML, and not longer than a title may be."""
    words = str(text)
    return html.escape(words if len(words) <= most else words[: most - 3] + "...")
