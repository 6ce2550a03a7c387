"""Koopman models of short series: fit a linear operator, forecast far ahead in closed form.

A nonlinear system that is observed through enough functions of its state evolves linearly (Koopman
1931). A training run near its end is such a system with slow modes, so a series of local
hypergradients is a sum of exponentials, x_{t+k} = Σ_j b_j λ_j^k v_j, and its value at the horizon
follows from the fitted eigenvalues λ_j. This is the idea of Hataya & Kawahara (arXiv 2402.02741,
equations 7 to 9).

- ``hankel``: delayed states, their SVD, and rules that choose a rank.
- ``dmd``: dynamic mode decomposition of these states (Schmid 2010), the forecast, its error bound,
  and the policies that say which modes are kept.
- ``selection``: delays and rank chosen by how well they forecast held-out rows.
- ``ensemble``: the median over the best candidates, and the proof that it can be relied on.

Others use :func:`~optuna_glocal.forecasting.koopman.ensemble.koopman` for a forecast and
:func:`~optuna_glocal.forecasting.koopman.dmd.qualify` to draw eigenvalues. This package imports
only ``forecasting.grid`` and ``forecasting.estimate``.
"""
