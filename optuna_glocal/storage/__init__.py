"""What a trial leaves in Optuna's storage: the only link between training and sampling.

The training callback and the sampler never import each other, and often run in different
processes. A trial leaves a :class:`~optuna_glocal.storage.record.Record`: the objective at the
horizon, measured or forecast, its gradient with respect to the hyperparameters, their standard
deviations, and where they come from. The sampler, the summary and the figures see nothing else of
a training run. The pattern is that of Optuna's own samplers, which keep their state in trial
attributes so that workers share it and a study can be resumed.

The rules:

- User attributes, which are public in Optuna, with keys that begin with ``glocal:``; only the
  proposal is a system attribute. :mod:`~optuna_glocal.storage.keys` lists all of them.
- JSON of plain numbers and text, at most three writes per trial, at its end; one plain number more
  for each hyperparameter that a self-tuned trial has moved, and two writes for each vector.
- Every text has a version, and a reader trusts nothing: text that is incomplete, edited or of
  another version reads as ``None``. A retried trial's record of its first attempt is ignored.

Modules: ``record``; ``given_gradient`` (:func:`record_gradient`, for gradients that come from
elsewhere); ``trajectory`` (the losses and hypergradients of a run); ``final_values`` (where a
self-tuned trial's hyperparameters ended); ``moved_path`` (how they came there); ``vector``
(:func:`suggest_vector`) and ``learnt_vector`` (where a vector ended); ``attributes`` (long texts
in chunks); ``json_values`` (reading numbers that anyone may have written); ``keys``; ``_optuna``
(every use of Optuna's private interfaces).

Others use ``Record``, ``record_gradient``, ``write_trajectory``, ``read_trajectory``, ``put`` and
``get``. This package may import ``forecasting.trajectory``, for the class ``Trajectory``.
"""
