"""A figure before it is drawn: panels with their traces, axes and texts, in plotly's vocabulary.

The plots fill a :class:`Sheet`, which plotly draws as it is and
:mod:`~optuna_glocal.visualization.drawing.matplotlib_backend` translates. Neither library need be
installed before that.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

GREY = "#767676"
Panel = tuple[int, int]
P = ParamSpec("P")


class Sheet:
    """Panels of one figure, counted from (1, 1) at the upper left.

    Args:
        rows: Rows of the grid of panels.
        columns: Columns of the grid.
        options: Options of plotly's ``make_subplots``: ``specs`` (panels that span rows), shared
            axes, spacings.

    Attributes:
        layout: Title, height, width, colours of values, legend.
        traces: Traces with their panels, in the order of drawing; ``scatter``,
            ``contour`` or ``heatmap``.
        texts: Annotations with their panels.
        x: Properties of the panels' horizontal axes.
        y: Properties of their vertical axes.
    """

    def __init__(self, rows: int, columns: int, **options: Any) -> None:
        self.rows, self.columns, self.options = rows, columns, options
        self.layout: dict[str, Any] = {}
        self.traces: list[tuple[Panel, dict[str, Any]]] = []
        self.texts: list[tuple[Panel, dict[str, Any]]] = []
        self.x: dict[Panel, dict[str, Any]] = {panel: {} for panel in self.panels()}
        self.y: dict[Panel, dict[str, Any]] = {panel: {} for panel in self.panels()}

    def panels(self) -> dict[Panel, int]:
        """Number of rows that each panel spans."""
        one: dict[str, int] = {}
        specs = self.options.get("specs") or [[one] * self.columns] * self.rows
        return {
            (i + 1, j + 1): spec.get("rowspan", 1)
            for i, row in enumerate(specs)
            for j, spec in enumerate(row)
            if spec is not None
        }

    def used(self) -> dict[Panel, int]:
        """The panels with any content; the others stay blank."""
        known = {panel for panel, _ in [*self.traces, *self.texts]}
        known |= {panel for panel in self.x if self.x[panel] or self.y[panel]}
        return {panel: span for panel, span in self.panels().items() if panel in known}

    def empty_scales(self, letter: str) -> list[Panel]:
        """Panels without traces whose axis ``letter`` has numbers that mean nothing.

        Categories mean something all the same, and so does a horizontal axis whose range is set:
        it may be shared.
        """
        drawn = {panel for panel, _ in self.traces}
        axes, known = (self.x, "range") if letter == "x" else (self.y, "categoryarray")
        blank = [panel for panel in self.used() if panel not in drawn]
        return [panel for panel in blank if not {known, "categoryarray"} & set(axes[panel])]

    def update_layout(self, **about: Any) -> None:
        """Sets properties of the whole figure."""
        self.layout.update(about)

    def update_xaxes(self, row: int | None = None, col: int | None = None, **about: Any) -> None:
        """Sets properties of the horizontal axis of one panel, or of all."""
        _update(self.x, row, col, about)

    def update_yaxes(self, row: int | None = None, col: int | None = None, **about: Any) -> None:
        """Sets properties of the vertical axis of one panel, or of all."""
        _update(self.y, row, col, about)


def _update(
    axes: dict[Panel, dict[str, Any]], row: int | None, col: int | None, about: dict[str, Any]
) -> None:
    for panel, axis in axes.items():
        if (row is None or row == panel[0]) and (col is None or col == panel[1]):
            axis.update(about)


def imported(module: str, extra: str = "dashboard") -> Any:
    """An optional module, or an error that says how to install it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"optuna_glocal.visualization needs {module}, which is not installed: "
            f"pip install optuna_glocal[{extra}]"
        ) from error


def drawn(plot: Callable[P, Sheet]) -> Callable[P, Any]:
    """Makes a plot return a plotly figure; ``__wrapped__`` still returns the sheet."""

    @functools.wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Any:
        make_subplots = imported("plotly.subplots").make_subplots
        return _in_plotly(plot(*args, **kwargs), make_subplots)

    signature = inspect.signature(plot).replace(return_annotation="plotly.graph_objects.Figure")
    shown: tuple[Any, ...] = (plot, draw)  # pdoc reads the inner one's
    for function in shown:
        function.__signature__ = signature
    return draw


def _in_plotly(sheet: Sheet, make_subplots: Callable[..., Any]) -> Any:
    figure = make_subplots(rows=sheet.rows, cols=sheet.columns, **sheet.options)
    figure.update_layout(
        template="plotly_white",
        # Anchored to the bottom of the figure, so that it covers no axis at any height.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0},
        margin={"t": 90, "b": 110},
    )
    figure.update_layout(**sheet.layout)
    figure.update_xaxes(showline=True, linecolor=GREY, ticks="outside", title_standoff=5)
    figure.update_yaxes(showline=True, linecolor=GREY, ticks="outside", zerolinecolor=GREY)
    empty = set(sheet.used()) - {panel for panel, _ in sheet.traces}
    nothing = {"type": "scatter", "x": [None], "y": [None], "showlegend": False}
    # Plotly draws neither axes nor aligned texts in a panel without a trace.
    for panel, trace in [*sheet.traces, *((panel, nothing) for panel in sorted(empty))]:
        figure.add_trace(trace, row=panel[0], col=panel[1])
    for panel, text in sheet.texts:
        anchors = {"xref": "x domain", "yref": "y domain", "showarrow": False}
        figure.add_annotation(**anchors, **text, row=panel[0], col=panel[1])
    for panel in sheet.panels():
        figure.update_xaxes(**sheet.x[panel], row=panel[0], col=panel[1])
        figure.update_yaxes(**sheet.y[panel], row=panel[0], col=panel[1])
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False}
    for letter, update in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        for row, column in sheet.empty_scales(letter):
            update(**bare, row=row, col=column)
    return figure
