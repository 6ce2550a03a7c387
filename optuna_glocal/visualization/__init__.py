"""Figures of what trials recorded: one plot per file, drawn by plotly or by matplotlib.

Every plot takes a study, a trial, a trajectory or a schedule, reads what is stored, and returns a
``plotly`` figure. Where data are missing, the figure says so; nothing is raised. The same names in
:mod:`optuna_glocal.visualization.matplotlib` return matplotlib axes. Neither library is imported
before a figure is made.

- ``trajectory``: one run's losses and hypergradients, with their forecast.
- ``eigenvalues``: the Koopman operator fitted to one run.
- ``schedule``: the hyperparameters that a run moved; ``vector``: a vector of them.
- ``proposals``, ``contour``, ``slice``: where the sampler went, with arrows along the gradients.
- ``importances``: how much each hyperparameter matters, by the trials' gradients.
- ``trust``: how far the sampler trusts the gradients, and why it proposed what it did.
- ``overview``: one run beside the path of proposals.
- ``dashboard``: :func:`upload` puts the figures on a study's page in optuna-dashboard.

``drawing`` holds what the plots share. A plot fills a
:class:`~optuna_glocal.visualization.drawing.figure.Sheet` in plotly's vocabulary, and one of two
backends draws it. This room may import ``analysis``, ``sampler``, ``storage`` and ``forecasting``.
"""

from optuna_glocal.visualization.contour import plot_contour
from optuna_glocal.visualization.dashboard import upload
from optuna_glocal.visualization.eigenvalues import plot_eigenvalues
from optuna_glocal.visualization.importances import plot_importances
from optuna_glocal.visualization.overview import plot_overview
from optuna_glocal.visualization.proposals import plot_proposals
from optuna_glocal.visualization.schedule import plot_schedule
from optuna_glocal.visualization.slice import plot_slice
from optuna_glocal.visualization.trajectory import plot_trajectory
from optuna_glocal.visualization.trust import plot_trust
from optuna_glocal.visualization.vector import plot_vector

__all__ = [
    "plot_contour",
    "plot_eigenvalues",
    "plot_importances",
    "plot_overview",
    "plot_proposals",
    "plot_schedule",
    "plot_slice",
    "plot_trajectory",
    "plot_trust",
    "plot_vector",
    "upload",
]
