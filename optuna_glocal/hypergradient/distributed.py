"""Several processes that train one model together, and where a tensor is spread over them.

Under DistributedDataParallel (DDP) each rank sees its own batches and holds all parameters; DDP
averages the gradients inside ``loss.backward()``. Under ``fully_shard`` (FSDP2) each rank holds a
shard of every parameter and of its gradient.

Tangents under DDP are averaged after that backward. A collective operation must be entered by all
ranks or by none, so at every backward of the window the ranks first agree that each still carries
tangents, and a rank that has stopped says so once. This needs a callback on every rank, hence a
``TorchDistributedTrial``; under any other trial nothing is communicated. What a run that tunes
itself decides by is :mod:`~optuna_glocal.hypergradient.agreement`'s.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from optuna_glocal.hypergradient._torch import store_of_processes, write_unseen

NOT_SHARED = (
    "The model is trained by several processes (DistributedDataParallel or fully_shard), each of "
    "which needs its own callback; pass a TorchDistributedTrial on every rank."
)
SHARDED = (
    "The model is sharded (fully_shard), and tangents cannot be carried through shards. Let its "
    'learning rates tune themselves (tune="lr"), or observe it without tangents (tangents=False).'
)
_SEVERAL_MESHES = (
    "The parameters lie on several device meshes, whose processes cannot decide together. Shard "
    "all of the model on one mesh."
)
_FLAT = (
    "The model is wrapped in FullyShardedDataParallel, which hides its parameters. Use "
    "torch.distributed.fsdp.fully_shard."
)
DEEPSPEED = (
    "DeepSpeed steps with parameters of its own, which no step hook sees. Use "
    "DistributedDataParallel or torch.distributed.fsdp.fully_shard."
)


# How often this process has come to each place where all processes meet.
_visits: Counter[str] = Counter()


class Ranks:
    """The processes behind one model.

    Args:
        groups: Process groups that together reach every rank: one, or one per dimension of a
            device mesh.
        device: Where messages between them are made.
        is_sharded: Whether each rank holds only a part of some parameters.
        refusal: Why they cannot be dealt with; empty if they can.
    """

    def __init__(
        self,
        groups: Sequence[Any],
        device: torch.device | str,
        *,
        is_sharded: bool = False,
        refusal: str = "",
    ) -> None:
        self._groups, self._device = list(groups), device
        self.is_sharded, self.refusal = is_sharded, refusal
        #: Number of processes.
        self.size = math.prod(dist.get_world_size(group) for group in self._groups)

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0 in all of its groups."""
        return all(dist.get_rank(group) == 0 for group in self._groups)

    def all_agree(self, still: bool) -> bool:
        """Whether ``still`` is true on every rank."""
        flag = torch.tensor(float(not still), device=self._device)
        self._reduce(flag)
        return flag.item() == 0

    def arrive(self, place: str, told: str = "") -> Callable[[float], dict[int, str]]:
        """Tells the others that this process has come to a place, without waiting for them.

        Args:
            place: A word for it. Every process comes there equally often.
            told: What to tell them there.

        Returns:
            Waits for so many seconds at most, and gives what each rank that has come has told.
        """
        store, members = store_of_processes(), self.members
        key = f"optuna_glocal/{place}/{members}"
        _visits[key] += 1
        key += f"/{_visits[key]}"
        if store is None:  # nobody can be asked; they are trusted to come
            return lambda seconds: dict.fromkeys(members, told)
        store.set(f"{key}/{dist.get_rank()}", told)

        def arrived(seconds: float) -> dict[int, str]:
            end, found = time.monotonic() + seconds, dict[int, str]()
            for rank in members:
                left = timedelta(seconds=max(0.01, end - time.monotonic()))
                with contextlib.suppress(RuntimeError, ValueError):  # it has not come
                    store.wait([f"{key}/{rank}"], left)
                    found[rank] = store.get(f"{key}/{rank}").decode()
            return found

        return arrived

    @property
    def members(self) -> list[int]:
        """Their ranks among all processes."""
        if len(self._groups) > 1:  # one per dimension of a mesh, which is of all processes
            return list(range(dist.get_world_size()))
        return dist.get_process_group_ranks(self._groups[0])

    def gather(self, own: Any) -> dict[int, Any]:
        """What each rank has, by its number, on the first rank; elsewhere nothing."""
        group = self._groups[0] if len(self._groups) == 1 else None
        held: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(own, held, self.members[0], group)
        return dict(zip(self.members, held or [], strict=False))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the ranks, in place."""
        for tensor in tensors:
            self._reduce(tensor)
            tensor /= self.size

    def sums(self, values: Sequence[Tensor | float]) -> list[float]:
        """The sum of each number over the ranks, in float64: the same bits on all of them."""
        message = self._message(values)
        self._reduce(message)
        return [float(x) for x in message.tolist()]

    def means(self, values: Sequence[float]) -> list[float]:
        """The mean of each number over the ranks; itself where they all have the same."""
        # Without the sign of zero, whose bits have no negative.
        bits = torch.tensor([v + 0.0 for v in values], dtype=torch.float64).view(torch.int64)
        ends = torch.cat([bits, -bits]).to(self._device)
        for group in self._groups:
            dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
        most, least = ends.chunk(2)
        is_same = (most == -least).tolist()
        sums = self.sums(values)
        return [
            value if same else total / self.size
            for value, total, same in zip(values, sums, is_same, strict=True)
        ]

    def _message(self, values: Sequence[Tensor | float]) -> Tensor:
        """All of them on the device, which is not waited for where they are tensors and zeros."""
        known = [0.0 if isinstance(v, Tensor) else v for v in values]
        if any(known):
            message = torch.tensor(known, dtype=torch.float64).to(self._device)
        else:
            message = torch.zeros(len(known), dtype=torch.float64, device=self._device)
        for place, v in zip(message, values, strict=True):
            if isinstance(v, Tensor):
                place.copy_(v.detach())
        return message

    def _reduce(self, tensor: Tensor) -> None:
        for group in self._groups:
            dist.all_reduce(tensor, group=group)


def not_alone(ranks: Ranks | None, is_shared: bool) -> str | None:
    """Why tangents cannot be carried where other processes train the model; ``None`` if they can.

    Args:
        ranks: The processes; ``None`` for one alone.
        is_shared: Whether the trial knows of them.
    """
    if ranks is None:
        return None
    if ranks.refusal or ranks.is_sharded:
        return ranks.refusal or SHARDED
    return None if is_shared else NOT_SHARED


def all_ranks(params: Sequence[Tensor], group: Any = None) -> Ranks | None:
    """All processes of a group, each with a copy of the model; ``None`` where there is only one.

    Args:
        params: The model's parameters.
        group: The group; ``None`` for that of all processes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) < 2:
        return None
    return Ranks([group], params[0].device)


def ranks_of(params: Sequence[Tensor]) -> Ranks | None:
    """The processes that share ``params``; ``None`` outside of distributed training.

    A parameter has no reference to its DDP module, so this searches all objects that Python's
    garbage collector tracks.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    meshes = list(dict.fromkeys(m for p in params if (m := _mesh_of(p)) is not None))
    if meshes:
        mesh, refusal = meshes[0], _SEVERAL_MESHES if len(meshes) > 1 else ""
        groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
        return Ranks(groups, mesh.device_type, is_sharded=True, refusal=refusal)
    ours = {id(p) for p in params}
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.nn.parallel.DistributedDataParallel):
            if _holds(thing, ours) and dist.get_world_size(thing.process_group) > 1:
                return Ranks([thing.process_group], next(thing.parameters()).device)
        elif kind.__name__ == "FullyShardedDataParallel" and _holds(thing, ours):
            return Ranks([thing.process_group], "cpu", is_sharded=True, refusal=_FLAT)
        elif kind.__name__ == "DeepSpeedEngine" and _holds(thing, ours):
            return Ranks([None], "cpu", refusal=DEEPSPEED)
    return None


def _holds(module: Any, params: set[int]) -> bool:
    """Whether a module has any of these parameters, or the optimizer of an engine has."""
    groups = getattr(getattr(module, "optimizer", None), "param_groups", [])
    held = [*module.parameters(), *(p for group in groups for p in group["params"])]
    return any(id(p) in params for p in held)


def own_part(parts: Mapping[int, Any]) -> Any:
    """This rank's part of what :meth:`Ranks.gather` has given.

    Raises:
        ValueError: If it was given by another number of processes.
    """
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if len(parts) != size:
        raise ValueError(
            f"checkpoint: expected that of as many processes as train now, {size}, got that of "
            f"{len(parts)}, each with its shards of the model. Resume with as many."
        )
    return parts[dist.get_rank()]


# -- shards ---------------------------------------------------------------------------------------


def _mesh_of(t: Tensor) -> Any:
    """The device mesh of a ``DTensor``; ``None`` of any other tensor."""
    return getattr(t, "device_mesh", None)


def local(t: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory: the tensor, or its shard."""
    if _mesh_of(t) is None:
        return t
    shard: Tensor = t.detach().to_local()  # type: ignore[attr-defined]
    return shard


def exchange(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Lets two lists of tensors swap their values in place, with one more tensor in memory."""
    for mine, other in zip(a, b, strict=True):
        held = mine.clone()
        write_unseen(mine, other)
        write_unseen(other, held)


def reshard(modules: Iterable[nn.Module]) -> None:
    """Frees the gathered parameters of modules under ``fully_shard``.

    Without a backward pass the outermost module keeps them after its forward pass, and would
    evaluate them again after the shards have changed.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        for inner in module.modules():
            if isinstance(inner, FSDPModule):
                inner.reshard()


def copies_of(t: Tensor, ranks: Ranks) -> int:
    """On how many of the ranks there is a copy of what this one holds of ``t``."""
    mesh = _mesh_of(t)
    if mesh is None:
        return ranks.size
    placements = t.placements  # type: ignore[attr-defined]
    return math.prod(
        mesh.size(dim) for dim, where in enumerate(placements) if not where.is_shard()
    )
