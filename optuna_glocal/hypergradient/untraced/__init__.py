"""Dependence on the trained weights that no graph shows, and the numbers that carry it.

A loop reads a value out of torch (``item``, ``numpy``, ``detach``), computes with it and puts the
result back into the loss. ``carried`` says whether a loss depends on the weights in such a way,
``following`` watches the torch functions of the loop for it. Beneath them: ``exports`` (what was
read, and what came back of it), ``marks`` and ``memory`` (which memory holds it),
``number_history`` and ``recurrences`` (numbers computed from those of earlier steps),
``python_numbers`` (which numbers are constants of the author's), ``torch_calls`` (what a call
takes and returns), ``compiled_functions`` and ``code_names`` (what a compiled one may do).
``loop_access`` tells the detectors in which steps the loop can have changed anything.
"""
