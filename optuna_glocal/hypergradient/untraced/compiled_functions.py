"""What compiled functions refer to, and whether they take values out of their graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optuna_glocal.hypergradient._torch_modes import CompiledCall
from optuna_glocal.hypergradient.module_search import modules_of
from optuna_glocal.hypergradient.untraced.code_names import names_in
from optuna_glocal.hypergradient.untraced.torch_calls import tensors_in

# Names in the code of a compiled function that take values out of its graph.
_CUTS = {"detach", "detach_", "data", "no_grad", "inference_mode", "item", "tolist", "numpy"}


class CompiledFunctions:
    """Looks each compiled function over once; its code and its models do not change."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, list[Tensor], bool]] = {}

    def read_by(self, call: CompiledCall) -> tuple[list[Tensor], bool]:
        """What a call may read: tensors, and whether it may take values out of its graph."""
        read, has_cut = list(tensors_in((call.args, call.kwargs))), False
        for thing in (call.function, *call.args, *call.kwargs.values()):
            if callable(thing):
                held, cuts = self._look_over(thing)
                read, has_cut = [*read, *held], has_cut or cuts
        return read, has_cut

    def _look_over(self, function: Any) -> tuple[list[Tensor], bool]:
        """Parameters and buffers of the models that a function refers to, and whether it cuts."""
        known = self._known.get(id(function))
        if known is None:
            modules = list(dict.fromkeys(m for top in modules_of(function) for m in top.modules()))
            held = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
            has_cut = not _CUTS.isdisjoint(names_in(function, modules))
            known = self._known[id(function)] = function, list(held.values()), has_cut
        return known[1:]
