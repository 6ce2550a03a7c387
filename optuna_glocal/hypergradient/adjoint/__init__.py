"""How the end of a run depends on what was held in it: one linear solve for any number of them.

Where training comes to rest, the forces on the weights balance: F(θ, λ) = ∇f + c(θ, λ) = 0, with f
the training loss and c the pull of the weight decay. So dθ/dλ = -A⁻¹ ∂F/∂λ with A = ∂F/∂θ, and

    dL/dλ = ∂L/∂λ - ⟨p, ∂F/∂λ⟩,        A p = v = ∇L        (L the validation loss)

(the implicit function theorem; Bengio 2000, "Gradient-based optimization of hyperparameters";
Lorraine et al. 2020, arXiv 1911.02590). One p serves every λ, numbers and tensors alike.

* ``equilibrium``: F of each optimizer: what weight decay pulls with, and how fast each weight
  follows;
* ``solver``: p, by one Hessian product in each of the last steps of a run. The number of these
  steps is small, so they are longer than the run's own, and momentum makes up for the rest: the
  solver covers the same effective time S = Σ lr as the run did. Its damping is that of the run:
  after S, a direction of curvature a counts (1 - exp(-a S)) / a in both, and so a run that has not
  converged is differentiated as such. Conjugate gradients, which need one and the same A in every
  step, diverge under the noise of minibatches;
* ``products``: A p and the mixed products ⟨p, ∂F/∂λ⟩, from one double backward;
* ``implicit``: the three of them in the user's own last training steps.

May import the rest of ``hypergradient``; ``training`` uses :class:`~.implicit.Implicit`.

Symbols: P parameters flattened, θ weights, λ hyperparameters, p and v of shape (P,).
"""
