"""Hessian products on the graph of the user's own loss, for all q tangents at once.

Carrying Z = dθ/dλ through a training step needs H Z + ∂g/∂λ, with H the Hessian of the training
loss and g its gradient. :class:`~.products.Products` stands in for ``loss.backward()``: it leaves
the user's gradients, bit for bit those of torch, and adds the product to given buffers. The model
is never evaluated a second time, so dropout masks and batch statistics are those of the step.

Pearlmutter (1994, "Fast exact multiplication by the Hessian") differentiates the whole backward
pass in one direction (forward over reverse). Here that is done on autograd's existing graph:

* ``products`` chooses between the two methods below and compares them in the first steps
  (``comparison``);
* ``graph_walker``, ``plan``, ``structure``: the walk along the graph. Tangents pass from the
  leaves to the loss before the user's backward, the tangents of the cotangents back after it, by
  one rule per operation (``rules/``);
* ``double_backward``: autograd differentiates its own backward, row by row; slower, but it needs
  no rule;
* ``fused_kernels``: second derivatives of attention and weight norm, which torch lacks.

Other packages use :class:`~.products.Products` and :class:`~.fused_kernels.Installed`. Users may
add rules for operations: :func:`optuna_glocal.hypergradient.hvp.rules.operation`.

This package imports torch, ``hypergradient._torch`` and ``hypergradient.errors`` only.
"""
