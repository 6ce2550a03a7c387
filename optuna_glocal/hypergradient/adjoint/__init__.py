"""How the end of a run depends on what was held in it: one linear solve for any number of them.

Where training comes to rest, the forces on the weights balance: F(θ, λ) = ∇f + c(θ, λ) = 0, with f
the training loss and c the pull of the weight decay. So dθ/dλ = -A⁻¹ ∂F/∂λ with A = ∂F/∂θ, and

    dL/dλ = ∂L/∂λ - ⟨p, ∂F/∂λ⟩,        A p = v = ∇L        (L the validation loss)

(the implicit function theorem; Bengio 2000, "Gradient-based optimization of hyperparameters";
Lorraine et al. 2020, arXiv 1911.02590). One p serves every λ, numbers and tensors alike.
Where learning rates move in the run, their path is taken as given: at the best path the derivative
through it vanishes, and near the best one it is as small as the distance.

* ``equilibrium``: F of each optimizer: what weight decay pulls with, and how fast each weight
  follows;
* ``solver``: p, by one Hessian product in each of the last steps of a run. It covers the same
  effective time S = Σ lr as the run did: in a run, a direction of curvature a counts
  (1 - exp(-a S)) / a, and so a run that has not converged is differentiated as such. Which method
  it takes follows from two products with the same vector;
* ``conjugate_gradients``: for one and the same A in every step, full batch or nearly so;
* ``heavy_ball``: for an A of each minibatch, under which conjugate directions diverge. Its steps
  are longer than the run's own, and momentum makes up for the rest as far as noise allows;
* ``products``: A p and the mixed products ⟨p, ∂F/∂λ⟩, from one double backward;
* ``implicit``: the three of them in the user's own last training steps.

May import the rest of ``hypergradient``; ``training`` uses :class:`~.implicit.Implicit`.

Symbols: P parameters flattened, θ weights, λ hyperparameters, p and v of shape (P,).
"""
