"""What a training loop does to its weights and gradients by itself, with the tangents.

``own_arithmetic`` takes Z and dg through it: ``shadows`` and ``dual_call`` run the loop's own
in-place calls on dual numbers, ``gradient_changes`` recognizes a change of the gradients by its
result.
"""
