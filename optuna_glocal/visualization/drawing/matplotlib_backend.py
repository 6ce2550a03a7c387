"""Draws a figure that is described in plotly's vocabulary with matplotlib."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np

from optuna_glocal.visualization.drawing.figure import GREY, Panel, Sheet
from optuna_glocal.visualization.drawing.matplotlib_traces import (
    SYMBOLS,
    Colours,
    Trace,
    each,
    labels_of,
    line_style,
)

_INCH = 100.0  # in plotly's pixels
_LETTER, _SAMPLE = 7, 60  # width of an entry of the legend, in pixels


def axes_of(sheet: Sheet, pyplot: Any) -> Any:
    """Draws the sheet.

    Args:
        sheet: The figure to draw.
        pyplot: ``matplotlib.pyplot``.

    Returns:
        The axes of its only panel, or an array of all axes in the order of the panels.
    """
    layout = sheet.layout
    size = layout.get("width", 900) / _INCH, layout.get("height", 450) / _INCH
    figure = pyplot.figure(figsize=size, layout="constrained")
    axes = _panels(figure, sheet)
    colours = Colours(layout.get("coloraxis"), pyplot)
    for panel, ax in axes.items():
        for trace in (t for p, t in sheet.traces if p == panel):
            Trace(ax, trace, labels_of(sheet.x[panel]), labels_of(sheet.y[panel])).draw(colours)
        _shape(ax, "x", sheet.x[panel])
        _shape(ax, "y", sheet.y[panel])
        if "scaleanchor" in sheet.y[panel]:
            ax.set_aspect("equal")
        for letter in (letter for letter in "xy" if panel in sheet.empty_scales(letter)):
            ax.tick_params(axis=letter, which="both", length=0, labelbottom=False, labelleft=False)
            ax.grid(visible=False, axis=letter)
        for text in (t for p, t in sheet.texts if p == panel):
            _write(ax, text)
    if colours.used and layout["coloraxis"].get("showscale", True):
        words = layout["coloraxis"]["colorbar"]["title"]["text"]
        figure.colorbar(colours.bar(), ax=list(axes.values()), label=words, shrink=0.6)
    figure.suptitle(_plain(layout.get("title", "")), x=0.02, ha="left")
    _legend(figure, sheet)
    return next(iter(axes.values())) if len(axes) == 1 else np.array(list(axes.values()))


def _panels(figure: Any, sheet: Sheet) -> dict[Panel, Any]:
    options = sheet.options
    grid = figure.add_gridspec(
        sheet.rows, sheet.columns, height_ratios=options.get("row_heights", [1] * sheet.rows)
    )
    axes: dict[Panel, Any] = {}
    for (row, column), span in sheet.used().items():
        x = axes.get((1, column)) if options.get("shared_xaxes") else None
        y = axes.get((row, 1)) if options.get("shared_yaxes") else None
        ax = figure.add_subplot(grid[row - 1 : row - 1 + span, column - 1], sharex=x, sharey=y)
        ax.tick_params(
            labelbottom=not options.get("shared_xaxes") or row == sheet.rows,
            labelleft=y is None,
        )
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        axes[row, column] = ax
    return axes


def _shape(ax: Any, letter: str, about: dict[str, Any]) -> None:
    """Title, scale, range and ticks of the axis ``letter``."""
    from matplotlib.ticker import MultipleLocator

    axis, log = getattr(ax, f"{letter}axis"), about.get("type") == "log"
    set_limits = getattr(ax, f"set_{letter}lim")
    axis.set_label_text(_title(about))
    if log:
        getattr(ax, f"set_{letter}scale")("log")
    limits = getattr(ax, f"get_{letter}lim")()
    if about.get("range") is not None:
        limits = [10.0**end if log else end for end in about["range"]]
    if labels := labels_of(about):
        axis.set_ticks(range(len(labels)), [_plain(label) for label in labels])
        limits = -0.5, len(labels) - 0.5
    elif "tickvals" in about:
        axis.set_ticks(about["tickvals"], [_plain(text) for text in about["ticktext"]])
        axis.set_ticks([], minor=True)
    elif "dtick" in about and not log:
        axis.set_major_locator(MultipleLocator(about["dtick"]))
    set_limits(limits)  # setting ticks has widened them
    if about.get("zeroline") and limits[0] < 0 < limits[1]:
        (ax.axhline if letter == "y" else ax.axvline)(0, color=GREY, linewidth=0.8, zorder=0)


def _title(about: dict[str, Any]) -> str:
    title = about.get("title") or ""
    return _plain(title["text"] if isinstance(title, dict) else title)


def _write(ax: Any, text: dict[str, Any]) -> None:
    """Writes a panel's title, or a sentence in its corner or its middle."""
    words = _plain(text["text"])
    if "yshift" in text:
        ax.set_title(words, loc="left", fontsize="medium", fontweight="bold")
        return
    middle = text["x"] == 0.5
    across, down = ("center", "center") if middle else ("left", "top")
    colour, at = text["font"]["color"], ax.transAxes
    ax.text(text["x"], text["y"], words, color=colour, transform=at, ha=across, va=down, wrap=True)


def _plain(text: str) -> str:
    """``text`` without HTML, and with what matplotlib would read as a formula escaped."""
    lines = re.sub(r"<br/?>", "\n", text)
    return html.unescape(re.sub(r"<[^>]*>", "", lines)).replace("$", r"\$")


def _legend(figure: Any, sheet: Sheet) -> None:
    """The legend below all panels, each entry once; a single trace needs none."""
    from matplotlib.lines import Line2D

    if not sheet.layout.get("showlegend", True) or len(sheet.traces) < 2:
        return
    entries: dict[str, Any] = {}
    for _, trace in sheet.traces:
        name = trace.get("name")
        hidden = not trace.get("showlegend", True) or not trace["x"]
        if name is None or name in entries or hidden:
            continue
        marker, line = trace.get("marker", {}), trace.get("line")
        symbols = [s for s in each(marker.get("symbol", "circle"), 1) if not s.startswith("line")]
        colour = marker.get("color", line["color"] if line else GREY)
        colour = colour if isinstance(colour, str) else GREY
        hollow = symbols[0].endswith("-open")
        shape = SYMBOLS.get(symbols[0].removesuffix("-open"), r"$\rightarrow$")
        entries[name] = Line2D(
            [],
            [],
            marker=shape if "markers" in trace["mode"] else "",
            markerfacecolor="none" if hollow else colour,
            markeredgecolor=colour,
            **(line_style(line) if line and "lines" in trace["mode"] else {"linestyle": ""}),
        )
    if entries:
        # Matplotlib omits labels that begin with an underscore.
        labels = [f" {_plain(name)}" for name in entries]
        wide = _LETTER * max(map(len, labels)) + _SAMPLE
        columns = max(1, int(figure.get_figwidth() * _INCH / wide))
        figure.legend(
            list(entries.values()), labels, loc="outside lower left", ncols=columns, frameon=False
        )
