"""What the beginning of a training run says about its end.

A run is observed for τ steps of T, with validation losses L_t and local hypergradients
h_t = dL(θ_t)/dλ. This room extrapolates both to the horizon T: the *glocal* estimate ĥ_T of Hataya
& Kawahara (arXiv 2402.02741). It is pure numpy and knows neither torch nor Optuna, so it can be
used on data of your own::

    from optuna_glocal import Trajectory, forecast
    seen = Trajectory(steps, losses, hypergradients, names=["lr"])
    end = forecast(seen, horizon=10_000)        # end.value, end.gradient, end.status

The pipeline, a file each:

- ``trajectory``: the data, points (t, L_t, h_t) of one run.
- ``effective_time``: under a learning-rate schedule, time is the sum of the learning rates.
- ``grid``: uneven points brought onto an even grid, which Koopman models need.
- ``estimators``: one function per way to extrapolate h_t, and the registry that names them. Start
  here to add an estimator.
- ``power_law``: the diagonal Koopman operator of dilation: each h_i continues as the power of time
  that it follows now (``"local"``).
- ``koopman``: a whole linear operator fitted to delayed states (``"koopman"``); the paper's idea.
- ``learning_curve``: the validation loss at T, by an autoregression on log L.
- ``free_gradient``: the learning rate's hypergradient from losses alone.
- ``estimate``: what an estimator returns; ``forecast``: the public function.

Measured errors are in ``examples/benchmarks/README.md``. Others use
:class:`~optuna_glocal.Trajectory`, :func:`~optuna_glocal.forecast`,
:class:`~optuna_glocal.Forecast` and :func:`~optuna_glocal.free_gradient`. This room imports no
other.
"""
