"""Bayesian optimisation with gradients: the sampler of a study, and everything behind a proposal.

::

    trials -> dataset: values and gradients on the unit cube (space, loss_link, output_warp)
           -> surrogate: a Gaussian process, with gradients or without (gp)
           -> policy: descent (trust_region, local_model), startup, model (acquisition,
              acquisition_search) or fallback
           -> proposal

In D dimensions a trial that knows the gradient of its objective tells D + 1 numbers instead of
one (Bayesian optimisation with gradients: Wu et al. 2017, arXiv 1703.04389). A gradient that comes
from a forecast may be wrong. The process therefore fits a noise and a gain to each source and
dimension, and gradients that do not help to predict left-out trials are not used at all.

Others use :class:`~optuna_glocal.sampler.sampler.GlocalSampler` and
:class:`~optuna_glocal.sampler.space.Space`. Only ``sampler``, ``fallback``, ``trials`` and
``space`` use Optuna; the other modules are numpy and scipy. This package may import
:mod:`optuna_glocal.storage`.

To try another acquisition function, write a class that is made from the model and from the least
value seen so far, with the three members of the protocol ``acquisition.Acquisition``::

    @dataclass(frozen=True)
    class ConfidenceBound:
        gp: GP
        best: float

        @property
        def scales(self):
            return self.gp.hyper.lengthscales

        def value(self, X):
            mean, variance = self.gp.posterior(X)
            return 2 * np.sqrt(variance) - mean

        def value_and_gradient(self, X):
            mean, variance, d_mean, d_variance = self.gp.posterior_gradient(X)
            sd = np.sqrt(variance)
            return 2 * sd - mean, d_variance / sd[:, None] - d_mean

and give it to the policy: ``Policy(seed, n_startup, acquisition=ConfidenceBound)``, or in
``sampler.py`` where ``GlocalSampler`` makes its policy. The search is not touched.
"""
