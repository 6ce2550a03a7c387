"""What a finished or running study tells, from its storage alone.

- ``summary``: one table of trials, gradients, their cost and what they say.
- ``sensitivity``: for each hyperparameter, how much the loss changes along its range and in which
  direction it improves. The importance is the median of the sizes of the slopes over the trials:
  Morris' μ* (Technometrics 33, 1991), with a median instead of the mean, since one diverged trial
  would outweigh all others.

- ``best_hyperparameters``: those of the best trial, where a self-tuned trial ended with them.

Nothing here runs a training or changes a study, and any study can be analysed: with records or
without, of any sampler, loaded from another process.

Others use ``summary``, ``Summary``, ``best_hyperparameters``, ``Sensitivity``, ``slopes_of`` and
``sensitivities``. This package may import ``sampler.space`` and :mod:`optuna_glocal.storage`.
"""
