"""How the weights, and with them the validation loss, depend on the hyperparameters.

Three derivatives of a validation loss L by the hyperparameters λ, all from the user's own training
steps:

* ``tangent``: Z = dθ/dλ is carried forward through every step (real-time recurrent learning;
  Franceschi et al. 2017, "Forward and reverse gradient-based hyperparameter optimization", arXiv
  1703.01785). The local hypergradient is h = Zᵀ ∇L + ∂L/∂λ. One param group's part is in
  ``group_tangent``; its gradients, and what clipping does to them, in ``gradient_tangent`` and
  ``clipping``; which steps compute a Hessian product, in ``product_spacing``.
  What the loop does to weights and gradients by itself is followed in ``loop_arithmetic/``; what
  escapes the tangents is told by ``escapes``, ``gradient_check`` and ``untraced/`` (values that
  leave the graph and come back).
* ``greedy``: the derivative of one step only (Baydin et al. 2018, "Online learning rate adaptation
  with hypergradient descent", arXiv 1703.04782).
* ``adjoint/``: at the end of a run, by the implicit function theorem: of what acts over the whole
  run, whatever the number of hyperparameters.

* ``mixed_product``: the same for whole vectors in the loss, with what earlier steps have left in
  the weights (Dagréou et al. 2022, arXiv 2201.13409).

Beneath them:

* ``optimizers/``: each optimizer's step and its Jacobian; users may add rules for their own;
* ``hvp/``: Hessian products on the user's own graph; users may add rules for operations;
* ``schedulers/``: how a scheduled entry depends on its base;
* ``bindings``: which hyperparameter stands where (an entry of a param group, a leaf of the loss);
* ``validation`` and ``isolation``: evaluate the validation loss without any effect on training;
  ``invisible/``: passes of our own along the user's graph that leave no trace;
* ``distributed``: several processes that train one model (``hand_averaging``: without a wrapper of
  it); ``agreement``: the numbers by which they decide alike; ``errors``: failures as sentences;
* ``_torch``: every private touch of torch, each with its reason.

``training/`` and ``tuning/`` use :class:`~.tangent.Tangent`, :class:`~.greedy.Greedy`,
:class:`~.bindings.Bindings` and :class:`~.validation.Validation`. This package imports torch and
numpy, and no other room of ``optuna_glocal``.

Symbols: θ weights, s optimizer state, g training gradient, H its Hessian, η entries of a param
group, λ hyperparameters (q of them), P parameters of one group flattened, Z of shape (q, P).
"""
