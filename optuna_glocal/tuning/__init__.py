"""Hyperparameters that move within one run, and the path that they leave.

By default (``by="blend"``, :mod:`~optuna_glocal.tuning.blend`) learning rates and hyperparameters
of the loss move. In the first quarter of the run a learning rate that trains is found from any
start (:mod:`~optuna_glocal.tuning.first_phase`), by the distance from the first weights
(:mod:`~optuna_glocal.tuning.distance`), or, in full-batch training, by how the loss falls
(:mod:`~optuna_glocal.tuning.steady_descent`); at the end it decays to 0
(:mod:`~optuna_glocal.tuning.annealing`). Hyperparameters of the loss move by the hypergradients of
one step at the raw and at the averaged weights, each counted only as far as it is significant
(:mod:`~optuna_glocal.tuning.gated_mean`).

Vectors of hyperparameters of the loss, of any size, move beside all these
(:mod:`~optuna_glocal.tuning.vector_tuner`), by one mixed product for all entries
(:mod:`~optuna_glocal.hypergradient.mixed_product`).

The older tuners move everything that is bound. Every k steps a
:class:`~optuna_glocal.tuning.tuner.Tuner` takes a hypergradient h = dL/dλ, maps it
to coordinates u(λ) in which one step means the same everywhere in the search interval
(:mod:`~optuna_glocal.tuning.transforms`), lets Adam make a move of it
(:mod:`~optuna_glocal.tuning.meta_optimizer`) and writes the new λ into the optimizer's param
groups. With ``by="greedy"`` h is the greedy hypergradient, one vector-Jacobian product of the last
optimizer step (Baydin et al. 2018, arXiv 1703.04782; Chandra et al. 2022, arXiv 1909.13371). Where
tangents are carried over windows instead (:mod:`~optuna_glocal.tuning.windowed`), it is Algorithm
1 of Hataya & Kawahara (arXiv 2402.02741).

A one-step gradient sees the noise of minibatches but not what annealing would gain. Two things
answer that: averages of the weights, at which every second validation gradient is taken under SGD
(:mod:`~optuna_glocal.tuning.weight_averaging`; Polyak & Juditsky 1992, Shamir & Zhang 2013), and a
return to the last sound weights where a move has broken the training
(:mod:`~optuna_glocal.tuning.rollback`).

Several processes that train one model, with copies of it or with shards, move alike: what decides
is summed over them (:mod:`~optuna_glocal.hypergradient.agreement`), and a step, a distance or an
average is that of each one's own part.

Learning-rate schedulers compose with all this: they own a factor, the base moves
(:mod:`~optuna_glocal.tuning.param_group_writer`). The path is a :class:`~optuna_glocal.Schedule`:
data to store and export, which :mod:`~optuna_glocal.tuning.replay` repeats in plain torch.

Others use :class:`~optuna_glocal.Schedule`; ``training`` uses the rest. Only the schedule knows
that there are trials, in which it is stored.

May import ``storage``, ``forecasting`` and ``hypergradient``.
"""
