"""Hessian products by a walk along autograd's own graph, batched over the q tangents."""
