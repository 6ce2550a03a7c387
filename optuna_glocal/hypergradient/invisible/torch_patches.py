"""What of torch is replaced while a callback is open."""

from __future__ import annotations

from optuna_glocal.hypergradient.hvp.fused_kernels import Installed
from optuna_glocal.hypergradient.invisible.user_hooks import Noticing
from optuna_glocal.hypergradient.invisible.zeroing import Zeroing


class TorchPatches:
    """Fused kernels that can be differentiated twice, hooks that are noticed, cheap zeroing.

    In effect until :meth:`remove`; several at once do no harm.
    """

    def __init__(self) -> None:
        self._all = (Installed(), Noticing(), Zeroing())

    def remove(self) -> None:
        """Gives torch its own functions back, after the last one."""
        for patch in self._all:
            patch.remove()
