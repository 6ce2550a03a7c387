"""Draws one trace with matplotlib: lines, markers, arrows, error bars, a surface of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optuna_glocal.visualization.drawing.figure import GREY

POINT = 0.72  # points per pixel
SYMBOLS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v",
    "triangle-left": "<", "triangle-right": ">", "pentagon": "p", "star": "*", "x": "X",
}  # fmt: skip
_DASHES = {"dot": ":", "dash": "--"}


class Colours:
    """The colour scale of values that all panels share."""

    def __init__(self, about: dict[str, Any] | None, pyplot: Any) -> None:
        self.used = False
        if about is not None:
            self._norm = pyplot.Normalize(about["cmin"], about["cmax"])
            name = about["colorscale"].lower() + ("_r" if about["reversescale"] else "")
            self._map = pyplot.get_cmap(name)
        self._mappable = pyplot.cm.ScalarMappable

    def __call__(self, values: Sequence[float | None]) -> Any:
        """Colours of ``values``; grey where a value is unknown."""
        self.used = True
        return [GREY if v is None else self._map(self._norm(v)) for v in values]

    def bar(self) -> Any:
        """What a colour bar is made from."""
        return self._mappable(self._norm, self._map)

    def surface(self, ax: Any, x: Any, y: Any, z: Any, opacity: float) -> None:
        """Draws values ``z`` on a grid."""
        self.used = True
        ax.pcolormesh(
            x, y, z, cmap=self._map, norm=self._norm, alpha=opacity, shading="nearest", zorder=0
        )


class Trace:
    """One trace on one panel."""

    def __init__(self, ax: Any, trace: dict[str, Any], x: list[str], y: list[str]) -> None:
        self._ax, self._trace = ax, trace
        self._x, self._y = _numbers(trace["x"], x), _numbers(trace["y"], y)

    def draw(self, colours: Colours) -> None:
        """Draws it."""
        trace, marker = self._trace, self._trace.get("marker", {})
        if trace["type"] in ("contour", "heatmap"):
            z = np.array([[math.nan if v is None else v for v in row] for row in trace["z"]])
            colours.surface(self._ax, self._x, self._y, z, trace["opacity"])
            return
        if marker.get("angleref"):
            self._draw_arrows()
            return
        if "lines" in trace["mode"]:
            line = trace["line"]
            shape = {"drawstyle": "steps-post"} if line.get("shape") == "hv" else {}
            self._ax.plot(self._x, self._y, **line_style(line), **shape)
        if "markers" in trace["mode"]:
            self._draw_markers(marker, colours)
        for name in ("error_x", "error_y"):
            if name in trace:
                self._draw_bars(name, trace[name])

    def _draw_arrows(self) -> None:
        line = self._trace["line"]
        style = "-|>" if any(each(self._trace["marker"]["size"], 1)) else "-"
        for i in range(0, len(self._x), 3):
            self._ax.annotate(
                "",
                xy=(self._x[i + 1], self._y[i + 1]),
                xytext=(self._x[i], self._y[i]),
                arrowprops={
                    "arrowstyle": style,
                    "color": line["color"],
                    "lw": line["width"] * POINT,
                },
            )

    def _draw_markers(self, marker: dict[str, Any], colours: Colours) -> None:
        n = len(self._x)
        symbols, sizes = (
            each(marker.get(k, d), n) for k, d in (("symbol", "circle"), ("size", 6))
        )
        by_value = marker.get("coloraxis") is not None
        colour = marker.get("color", self._trace.get("line", {}).get("color", GREY))
        inks = colours(colour) if by_value else [colour] * n
        for symbol in dict.fromkeys(symbols):
            mine = [i for i in range(n) if symbols[i] == symbol and sizes[i]]
            if not mine or symbol.startswith("line"):
                continue
            ink = [inks[i] for i in mine]
            hollow = symbol.endswith("-open")
            self._ax.scatter(
                self._x[mine],
                self._y[mine],
                s=[(sizes[i] * POINT) ** 2 for i in mine],
                marker=SYMBOLS[symbol.removesuffix("-open")],
                facecolors="none" if hollow else ink,
                edgecolors=ink if hollow else marker.get("line", {}).get("color", "none"),
                linewidths=marker.get("line", {}).get("width", 1) * POINT,
                clip_on=self._trace.get("cliponaxis", True),
                alpha=marker.get("opacity"),
                zorder=3,
            )

    def _draw_bars(self, name: str, bars: dict[str, Any]) -> None:
        high = np.array(bars["array"], float)
        ends = np.array([np.array(bars.get("arrayminus", high), float), high])
        color, width = bars["color"], bars["thickness"] * POINT
        self._ax.errorbar(
            self._x,
            self._y,
            **{f"{name[-1]}err": ends},
            fmt="none",
            ecolor=color,
            elinewidth=width,
            capsize=bars["width"] * POINT,
        )


def line_style(line: dict[str, Any]) -> dict[str, Any]:
    """Matplotlib's arguments for plotly's line."""
    style = _DASHES.get(line.get("dash", ""), "-")
    return {"color": line["color"], "linewidth": line["width"] * POINT, "linestyle": style}


def each(value: Any, n: int) -> list[Any]:
    """A list of n values, where one may be given for all."""
    return value if isinstance(value, list) else [value] * n


def labels_of(axis: dict[str, Any]) -> list[str]:
    """The categories of an axis; an empty list for an axis of numbers."""
    return list(axis.get("categoryarray", ())) if axis.get("type") == "category" else []


def _numbers(column: Sequence[Any], labels: list[str]) -> Any:
    if labels:
        return np.array([labels.index(v) for v in column], float)
    return np.array([math.nan if v is None else v for v in column], float)
