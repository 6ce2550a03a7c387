"""The figures of :mod:`optuna_glocal.visualization` in matplotlib.

Every function takes the arguments of the function of the same name there, and returns the
``matplotlib.axes.Axes``, or an array of them where there are several panels. Plotly is not needed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from optuna_glocal import visualization
from optuna_glocal.visualization.drawing.figure import P, imported
from optuna_glocal.visualization.drawing.matplotlib_backend import axes_of


def _twin(plot: Callable[P, Any]) -> Callable[P, Any]:
    @functools.wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Any:
        pyplot = imported("matplotlib.pyplot", "matplotlib")
        return axes_of(inspect.unwrap(plot)(*args, **kwargs), pyplot)

    axes = "matplotlib.axes.Axes | numpy.ndarray"
    signature = inspect.signature(plot).replace(return_annotation=axes)
    draw.__signature__ = signature  # type: ignore[attr-defined]
    words = (plot.__doc__ or "").replace("If plotly is", "If matplotlib is")
    draw.__doc__ = words.replace(
        "A ``plotly.graph_objects.Figure``.",
        "The ``matplotlib.axes.Axes``; an array of them where there are several panels.",
    )
    return draw


plot_contour = _twin(visualization.plot_contour)
plot_eigenvalues = _twin(visualization.plot_eigenvalues)
plot_importances = _twin(visualization.plot_importances)
plot_overview = _twin(visualization.plot_overview)
plot_proposals = _twin(visualization.plot_proposals)
plot_schedule = _twin(visualization.plot_schedule)
plot_slice = _twin(visualization.plot_slice)
plot_trajectory = _twin(visualization.plot_trajectory)
plot_trust = _twin(visualization.plot_trust)
plot_vector = _twin(visualization.plot_vector)

__all__ = [name for name in visualization.__all__ if name.startswith("plot_")]
