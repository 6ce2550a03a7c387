"""Every private touch of torch, each with its reason, but for those of `_torch_modes`.

No other file of the package names these parts, so these are the files to open when a new version
of torch breaks something; ``.ci/newest`` runs the tests that would notice. Everything here is
either torch's own object under a public name or a reader made once at import: in a training step
it costs what the private attribute itself costs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = [
    "DispatchMode", "Node", "accumulation_hooks", "adaptive_average_pool",
    "adaptive_average_pool_backward", "aten", "backward_hooks", "copy_each_", "count_users",
    "custom_function", "factor_of_scaler", "flatten_dense", "flop_formula",
    "fused_weight_norm", "is_fused_kernel", "keeps_saved_tensors", "last_factor", "lerp_each_",
    "make_dual", "make_first", "make_last", "memory_of", "node_name", "norm_each",
    "output_metadata", "replace_data", "saved", "scaler_flags", "set_weight_norm",
    "show_last_rates", "storage_of", "store_of_processes", "subtract_each_", "version_of",
    "write_unseen",
]  # fmt: skip

# -- autograd's graph -----------------------------------------------------------------------------

# A node of autograd's graph. torch declares `torch.autograd.graph.Node`, but what an operation
# saves becomes an attribute of its node at run time only.
Node = Any


def saved(*names: str) -> attrgetter[Any]:
    """Reads what an operation of the forward pass has saved in its node.

    ``saved("self", "mat2")(node)`` is ``(node._saved_self, node._saved_mat2)``. The attributes
    are described in torch's notes on autograd as a means of inspection; their names are those of
    ``tools/autograd/derivatives.yaml`` and may change with any version. Nothing public gives an
    operation's inputs, and evaluating the model again would draw other dropout masks.
    """
    return attrgetter(*(f"_saved_{name}" for name in names))


# Shape, dtype and device of each output of a node, which nothing public tells of a node whose
# output is out of reach.
output_metadata: attrgetter[Any] = attrgetter("_input_metadata")


def node_name(kind: type) -> str:
    """The name that a rule is registered under, such as ``"TanhBackward0"``.

    A node's type is made by torch's code generator and cannot be imported, so only its name
    identifies the operation. The digit counts the overloads of one operation.
    """
    return kind.__name__


def last_factor(root: Node) -> Tensor | None:
    """The constant that a loss was multiplied by last, as by a GradScaler; ``None`` if none."""
    if root is None or node_name(type(root)) != "MulBackward0":
        return None
    # Of a product each factor is saved that the other's gradient needs.
    factors = [root._saved_self, root._saved_other]
    found = [f for f in factors if isinstance(f, Tensor) and not f.requires_grad]
    return found[0] if len(found) == 1 else None


def keeps_saved_tensors(node: Node) -> bool:
    """Whether the saved tensors are those of the forward pass.

    Under activation checkpointing every access computes a new one.
    """
    for name in _saved_names(type(node)):  # type: ignore[arg-type]
        try:
            first, second = getattr(node, name), getattr(node, name)
        except RuntimeError:  # changed in place since the forward pass, as running statistics are
            continue
        if isinstance(first, Tensor) and first.data_ptr() != second.data_ptr():
            return False
    return True


@functools.cache
def _saved_names(kind: type) -> list[str]:
    names = [name for name in dir(kind) if name.startswith("_saved_")]
    return [name for name in names if not name.endswith(("_sizes", "_strides"))]


def backward_hooks(t: Tensor) -> dict[int, Any] | None:
    """The hooks of ``t.register_hook``, which torch reads from this very dict in every backward.

    torch can only add hooks, not list them, and not leave them out for one pass.
    """
    hooks: dict[int, Any] | None = t._backward_hooks
    return hooks


def accumulation_hooks(p: Tensor) -> Any:
    """The hooks of ``p.register_post_accumulate_grad_hook`` by key; ``None`` for none.

    They run in the order in which they were put into this dict, and there is no public way to put
    one before the others.
    """
    return getattr(p, "_post_accumulate_grad_hooks", None)


def custom_function(node: Node) -> type | None:
    """The ``torch.autograd.Function`` that a node was made by; ``None`` for torch's operations."""
    function: type | None = getattr(type(node), "_forward_cls", None)
    return function


# -- tensors --------------------------------------------------------------------------------------

# Counts the writes into a tensor: the only way to notice that somebody else has changed it.
version_of: attrgetter[int] = attrgetter("_version")

# One call where `torch.cat` needs one more per tensor to flatten it; for small models calls are
# the cost. Public only inside DistributedDataParallel. Of a single tensor it makes a view.
flatten_dense: Callable[[list[Tensor]], Tensor] = _flatten_dense_tensors

# One kernel for all parameters instead of one per parameter; torch's optimizers use them, and
# there is no public spelling.
lerp_each_ = torch._foreach_lerp_
copy_each_ = torch._foreach_copy_
norm_each = torch._foreach_norm
subtract_each_ = torch._foreach_sub_


def replace_data(p: Tensor, data: Tensor) -> None:
    """Lets ``p`` hold another tensor's values, possibly of another dtype, without a copy.

    ``p.data`` is discouraged, but the public ways copy, keep the dtype, or make another object
    that no optimizer knows.
    """
    p.data = data


def write_unseen(t: Tensor, value: Tensor) -> None:
    """Overwrites ``t`` without counting as a write, for what puts back what was there before.

    A graph of the user's that has saved ``t`` stays valid.
    """
    t.data.copy_(value)


_weak_storage: Callable[[Any], StorageWeakRef] = StorageWeakRef


def memory_of(t: Tensor) -> int:
    """What tells the memory behind a tensor from any other that is there now."""
    key: int = t.untyped_storage()._cdata
    return key


# How many tensors and arrays hold the memory that `memory_of` tells, which must be alive. Nothing
# public tells whether a tensor has another view.
count_users: Callable[[int], int] = torch._C._storage_Use_Count


def storage_of(t: Tensor) -> tuple[int, StorageWeakRef]:
    """What tells the memory behind a tensor from any other, and a weak reference to it.

    An address alone may be used again; this one is not as long as the reference is held.
    """
    storage = t.untyped_storage()
    return storage._cdata, _weak_storage(storage)


def make_dual(t: Tensor, tangent: Tensor) -> Tensor:
    """``torch.autograd.forward_ad.make_dual`` without its first call's second of imports.

    These are decompositions for kernels that none of the simple functions needs that we call.
    """
    dual: Tensor = torch._VF._make_dual(t, tangent, level=0)
    return dual


# -- kernels --------------------------------------------------------------------------------------

# Operations by the dispatcher's names. Backward kernels (`tanh_backward`, `convolution_backward`,
# ...) have no other name, and calling them is what makes our products as fast as torch's own.
aten = torch.ops.aten
adaptive_average_pool = aten._adaptive_avg_pool2d
adaptive_average_pool_backward = aten._adaptive_avg_pool2d_backward

# The fused kernel beneath `torch.nn.utils.weight_norm` and its parametrization.
fused_weight_norm: Callable[..., Tensor] = torch._weight_norm
_FUSED = (
    *("FlashAttention", "EfficientAttention", "CudnnAttention", "FusedAttention"),
    *("WeightNorm", "EmbeddingBag", "MultiMarginLoss", "Cdist", "EuclideanDist"),
)


def set_weight_norm(function: Callable[..., Tensor]) -> None:
    """Replaces the function behind both spellings of weight norm.

    The parametrization looks it up in torch; the older spelling has imported it into its own
    module, which ``torch.nn.utils`` hides behind the function of the same name.
    """
    torch._weight_norm = function
    older = sys.modules.get("torch.nn.utils.weight_norm")
    if hasattr(older, "_weight_norm"):
        older._weight_norm = function  # type: ignore[union-attr]


def is_fused_kernel(node: Node) -> bool:
    """Whether a node is one of the fused kernels whose derivative cannot be differentiated."""
    name = node.name()
    return any(fused in name for fused in _FUSED)


# -- step hooks ---------------------------------------------------------------------------------


def make_first(handle: Any) -> None:
    """Lets the step hook behind a handle run before all others that are there now."""
    if handle.hooks_dict_ref() is not None:
        handle.hooks_dict_ref().move_to_end(handle.id, last=False)


def make_last(handle: Any) -> None:
    """Lets the step hook behind a handle run after all others that are there now.

    torch runs hooks in the order of registration and has no public means to change it.
    """
    hooks = handle.hooks_dict_ref()
    if hooks is not None and next(reversed(hooks)) != handle.id:
        hooks.move_to_end(handle.id)


# -- schedulers -----------------------------------------------------------------------------------


def show_last_rates(scheduler: torch.optim.lr_scheduler.LRScheduler, rates: list[float]) -> None:
    """Sets what ``get_last_lr`` returns, where it tells as many rates; torch has no setter."""
    last: Any = getattr(scheduler, "_last_lr", None)
    if isinstance(last, list) and len(last) == len(rates):
        scheduler._last_lr = list(rates)


# -- several processes --------------------------------------------------------------------------


def store_of_processes() -> Any:
    """The key-value store by which the processes found each other; ``None`` without one (MPI).

    Through it a process can ask for the others without a collective operation, which waits for
    ever where not all take part. Nothing public gives the store that ``init_process_group`` made.
    """
    from torch.distributed import distributed_c10d

    try:
        return distributed_c10d._get_default_store()
    except (ValueError, RuntimeError):
        return None


# -- optimizers under GradScaler ----------------------------------------------------------------


def factor_of_scaler(scaler: torch.amp.GradScaler) -> Tensor | None:
    """What ``GradScaler.scale`` multiplies with: the scaler's own tensor, ``None`` before.

    ``get_scale`` makes a number of it, for which it waits for the device. A scaler with
    ``enabled=False`` has no such tensor.
    """
    return getattr(scaler, "_scale", None)


def scaler_flags(optimizer: torch.optim.Optimizer) -> tuple[Tensor | None, Tensor | None]:
    """What ``GradScaler.step`` tells a fused optimizer: ``found_inf`` and ``grad_scale``.

    The scaler sets them as attributes for the time of the step: a step with a positive
    ``found_inf`` does nothing, and one with a ``grad_scale`` unscales the gradients itself.
    """
    return getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)


# -- dispatch -------------------------------------------------------------------------------------

# Sees every kernel call below autograd. Public packages subclass it, but torch has not moved it
# out of its private module.
DispatchMode = TorchDispatchMode


def flop_formula(function: Any) -> Callable[..., int] | None:
    """The flops of a kernel by torch's own formulas, or ``None`` where torch has none.

    ``FlopCounterMode`` is public but follows modules by hooks on their inputs, which fails where
    an input is a parameter (weight norm and the other parametrizations).
    """
    return flop_registry.get(function._overloadpacket)


def take_back_step(scheduler: Any) -> None:
    """Lets a scheduler count as if its last step were still to come; SWALR reads this count."""
    scheduler.last_epoch -= 1
    scheduler._step_count = getattr(scheduler, "_step_count", 1) - 1
