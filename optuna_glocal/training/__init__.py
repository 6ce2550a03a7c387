"""One trial's training loop, from its first backward to its record.

A :class:`~optuna_glocal.GlocalCallback` stands on the optimizer's own step hooks and replaces
``loss.backward()``. It runs the trial in one of two modes, which share one protocol
(:mod:`~optuna_glocal.training.mode`) and are chosen by one argument each
(:mod:`~optuna_glocal.training.options`):

* :class:`~optuna_glocal.training.observation.Observing` (``observe=Observe(...)``) leaves the
  training bit for bit as it is. Over the first τ steps it carries the tangents Z = dθ/dλ forward
  in time and measures the validation loss L_t with its local hypergradient h_t = dL(θ_t)/dλ; the
  end of the run is forecast from these points (Hataya & Kawahara, arXiv 2402.02741).
* :class:`~optuna_glocal.training.self_tuning.Tuning` (``tune=Tune(...)``) moves the
  hyperparameters while the model trains (learning rates in the first quarter of the run, without
  gradients; those of the loss all along, by one-step hypergradients; :mod:`optuna_glocal.tuning`),
  and keeps the path as a :class:`~optuna_glocal.Schedule`.

Around either mode, :class:`~optuna_glocal.training.held_gradient.HeldGradient` adds the implicit
gradient of what was held, in the last steps.

Everything runs through one :class:`~optuna_glocal.training.shield.Shield`: errors here never
interrupt training; they end the hypergradients with a sentence, ``glocal.status``. What can be
refused is refused when the callback is made or entered, never inside the loop.

Whatever ends the trial, a :class:`~optuna_glocal.Record` is left in Optuna's storage
(:mod:`~optuna_glocal.training.report`); the sampler reads nothing else.

Others use :class:`~optuna_glocal.GlocalCallback`, :class:`~optuna_glocal.Observe`,
:class:`~optuna_glocal.Tune`, and, in :mod:`optuna_glocal.integrations`,
:func:`~optuna_glocal.training.trial.is_shared`.

May import ``tuning``, ``storage``, ``forecasting`` and ``hypergradient``.
"""
