"""Learning-rate schedulers, and the derivative of what they do with respect to a base value.

A hyperparameter λ (a learning rate, a momentum) enters a run as the *base* value of a param-group
entry η. At every step a scheduler makes another value of it. Tangents need dη/d(base), forecasts
need the values still to come, and a trial that tunes itself needs the scheduler's factor, so that
it can move the base and leave the factor to the scheduler. One object answers all of this for a
run, :class:`~optuna_glocal.hypergradient.schedulers.twin.SchedulerTwin`.

The idea: a scheduler is a small deterministic program on python floats. A copy of it, attached to
a stand-in for the optimizer, makes the same steps with dual numbers (forward-mode automatic
differentiation; Griewank & Walther, *Evaluating Derivatives*, 2008, chapter 3) and gives the
derivative exactly; stepped further, it gives the future. Whatever the copy does not reproduce is
refused.

Whether a scheduler's own numbers (``eta_min``, ``max_lr``, a floor in a function) were computed
from the base is read off the numbers: a suggested value has sixteen digits, a literal of the
program is one object, an expression of ``glocal[name]`` is a tensor. What remains is refused.

- ``twin``: :class:`SchedulerTwin`: base, factor, derivative and future of an entry.
- ``base``: which value schedulers compute an entry from.
- ``derivative``: which numbers of a scheduler get a derivative; ``ratio``, ``literals``,
  ``closures`` and ``expressions``: how that is known.
- ``loop_changes``: entries that the training loop itself sets.
- ``discovery``: finds an optimizer's schedulers, copies them, counts their steps.
- ``huggingface``: schedules of transformers, whose function holds the base value.
- ``dual``: the dual numbers.
- ``learning_rates``: rates of the whole run, recorded and predicted, for the forecast.

Others use ``SchedulerTwin``, the functions of ``base`` and ``ratio``, ``Pace`` of
``learning_rates`` and ``keep_floor`` of ``huggingface``. May import torch, and of this package
``hypergradient.errors`` and ``hypergradient.optimizers``.
"""
