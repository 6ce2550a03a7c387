"""Hyperparameters that move within one run, and the path that they leave.

Every k steps a :class:`~optuna_glocal.tuning.tuner.Tuner` takes a hypergradient h = dL/dλ, maps it
to coordinates u(λ) in which one step means the same everywhere in the search interval
(:mod:`~optuna_glocal.tuning.transforms`), lets Adam make a move of it
(:mod:`~optuna_glocal.tuning.meta_optimizer`) and writes the new λ into the optimizer's param
groups. By default h is the greedy hypergradient, one vector-Jacobian product of the last optimizer
step (Baydin et al. 2018, arXiv 1703.04782; Chandra et al. 2022, arXiv 1909.13371). Where tangents
are carried over windows instead (:mod:`~optuna_glocal.tuning.windowed`), it is Algorithm 1 of
Hataya & Kawahara (arXiv 2402.02741).

A one-step gradient sees the noise of minibatches but not what annealing would gain. Two things
answer that: averages of the weights, at which every second validation gradient is taken under SGD
(:mod:`~optuna_glocal.tuning.weight_averaging`; Polyak & Juditsky 1992, Shamir & Zhang 2013), and a
return to the last sound weights where a move has broken the training
(:mod:`~optuna_glocal.tuning.rollback`).

Learning-rate schedulers compose with all this: they own a factor, the base moves
(:mod:`~optuna_glocal.tuning.param_group_writer`). The path is a :class:`~optuna_glocal.Schedule`,
which can be stored, exported and replayed in plain torch.

Others use :class:`~optuna_glocal.Schedule`; ``training`` uses the rest. Only the schedule knows
that there are trials, in which it is stored.

May import ``storage``, ``forecasting`` and ``hypergradient``.
"""
