"""Figures of what trials recorded: trajectories, eigenvalues, the path of proposals.

Every function takes what is stored, never raises for what is missing (the figure says so), and
returns a ``plotly`` figure, which is imported only when one is made.
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
    "upload",
]
