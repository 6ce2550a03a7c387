"""Passes of our own that leave no trace in the user's training.

``guard`` runs one along the user's graph: random states (``random_states``), buffers, gradients
and hooks (``user_hooks``) are put back or kept from firing. ``torch_patches`` is what of torch is
replaced while a callback is open, by patches that several callbacks share (``shared_patch``).
"""
