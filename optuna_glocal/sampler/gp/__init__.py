"""A Gaussian process on values and on any subset of partial derivatives, in numpy and scipy.

Differentiation is linear, so a function with a Gaussian process prior and its partial derivatives
are jointly Gaussian: an observed gradient is just further rows of the covariance matrix
(Rasmussen & Williams 2006, section 9.4). The covariance is a Matérn-5/2 kernel with one
lengthscale per dimension and Hamming distance between categories.

- ``kernel``: covariance of values and partials, and its derivatives, in closed form;
- ``observations``: the data, flattened, and the hyperparameters that a fit determines;
- ``marginal_likelihood``: how plausible hyperparameters are, with gradient and priors;
- ``process``: fitting, prediction with gradients, leave-one-out over trials, fantasies;
- ``linear_algebra``: Cholesky factors.

N = n + P observations (n values, P partials) cost O(N³); the caller bounds N. The noise of the
partials of each source and dimension is fitted, and so is a gain, for gradients that are
systematically too short, too long or of the wrong sign.

Others use ``fit``, ``condition`` and ``GP`` of ``process``, ``Observations`` and
``Hyperparameters``. This package imports nothing of optuna_glocal but array types.
"""
