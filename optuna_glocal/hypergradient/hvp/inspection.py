"""What of a loss's graph a second derivative cannot be trusted with, found before it is taken.

Autograd leaves out in silence what it cannot differentiate twice: a backward marked
``once_differentiable``, one that fills a buffer by a kernel, a reentrant checkpoint, whose inside
is no part of the graph. And a backward written in python may do anything else besides, such as
counting its calls, which it must not do more often than without us.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from optuna_glocal.hypergradient._torch import (
    Node,
    custom_function,
    node_name,
    output_metadata,
    saved,
    version_of,
)
from optuna_glocal.hypergradient.errors import EscapeError, TangentError
from optuna_glocal.hypergradient.hvp.custom_functions import is_derivative
from optuna_glocal.hypergradient.hvp.pure_code import computes_only, is_plain_value
from optuna_glocal.hypergradient.hvp.structure import Structure, explore
from optuna_glocal.hypergradient.other_optimizers import trainer_of

# Structures of graphs that are remembered as harmless, the newest first.
_MOST = 8
# torch's own functions in python that may be differentiated again and have no other effect.
_HARMLESS = ("BackwardHookFunction", "_Forward", "_Backward")
_EMBEDDING = "EmbeddingBackward0"
_by_frequency, _padding = saved("scale_grad_by_freq"), saved("padding_idx")
_NO_PADDING = 2**63  # -1, read as an unsigned number
_OWN = ("torch.", "optuna_glocal.")
_NO_DERIVATIVE = (
    "The backward of {}, a custom torch.autograd.Function, is not the derivative of its forward "
    "(a straight-through estimate, a reversed or scaled gradient), or cannot be compared with it "
    "in double precision. A second derivative would take it for the derivative."
)
# Operations of torch whose backward is a straight-through estimate.
_STRAIGHT_THROUGH = ("FakeQuantize", "FusedMovingAvgObsFq")
_PADDED = (
    "embedding(padding_idx={}) reads a row that moves and gets no gradient itself (a table that "
    "is computed, tied to another layer, or not zero there), so gradients are not those of the "
    "loss. Leave padding_idx out, or mask what is padded."
)
_HALF = (torch.float16, torch.bfloat16)


class Inspection:
    """Looks at every graph once, and in every step at its leaves that nobody watches.

    Args:
        known: The leaves that tangents are carried for.
        moves: Whether gradients are differentiated by parameters, not by leaves of the loss alone.
    """

    def __init__(self, known: Collection[Tensor], *, moves: bool = True) -> None:
        self._moves = moves
        # Custom functions whose backward has not been compared with their forward yet.
        self._unknown: set[type] = set()
        self._known = {id(leaf) for leaf in known}
        self._seen: list[tuple[Structure, bool]] = []
        # Leaves that are not known, by structure, and their counts of writes when first seen.
        self._others_of: weakref.WeakKeyDictionary[Structure, list[weakref.ref[Tensor]]]
        self._others_of = weakref.WeakKeyDictionary()
        self._versions: Any = WeakTensorKeyDictionary()
        # Padded rows of embeddings, each of which must stay at zero, by table and index.
        self._at_rest: dict[tuple[int, int], weakref.ref[Tensor]] = {}
        #: Whether the newest graph computes in half precision somewhere.
        self.is_half = False

    def look(self, root: Node) -> Structure:
        """The structure of a graph, looked through if it is new.

        Raises:
            TangentError: If the graph has a part with no trustworthy second derivative.
        """
        for structure, is_half in self._seen:
            if structure.follow(root) is not None:
                self.is_half = is_half
                return structure
        nodes, structure = explore(root)
        self.admit(nodes)
        self.is_half = _is_half(nodes, structure)
        self._seen = [(structure, self.is_half), *self._seen[: _MOST - 1]]
        return structure

    def admit(self, nodes: Sequence[Node]) -> None:
        """Looks through the nodes of a new graph.

        Raises:
            TangentError: If one of them has no trustworthy second derivative.
        """
        for node in nodes:
            sentence = refusal(node)
            if sentence is None and self._moves:
                sentence = (
                    refusal_of_quantization(node)
                    or refusal_of_embedding(node, nodes)
                    or self._refusal_of_custom(node)
                )
            if sentence is not None:
                raise TangentError(sentence)
            if self._moves and (padded := _padded_row(node)) is not None:
                table, row = padded
                self._at_rest[id(table), row] = weakref.ref(table)

    def _refusal_of_custom(self, node: Node) -> str | None:
        """Why a custom function cannot be differentiated twice; what is not known yet is kept."""
        function = custom_function(node)
        if function is None or function.__module__.startswith(_OWN):
            return None
        known = is_derivative(function)
        if known is None:
            self._unknown.add(function)
        return _NO_DERIVATIVE.format(function.__name__) if known is False else None

    def _look_at_custom(self) -> None:
        for function in list(self._unknown):
            if (known := is_derivative(function)) is not None:
                self._unknown.discard(function)
                if not known:
                    raise EscapeError(_NO_DERIVATIVE.format(function.__name__))

    def look_at_padding(self) -> None:
        """Looks at the rows that embeddings have read as padding.

        Raises:
            TangentError: If one of them is not at zero any more.
        """
        for (_, row), ref in self._at_rest.items():
            if (table := ref()) is not None and bool(table[row].any()):
                raise TangentError(_PADDED.format(row))

    def look_at_others(self, structure: Structure) -> None:
        """Looks at what may change from step to step, in every step.

        That are the leaves that no tangents are carried for, and rows that embeddings read as
        padding.

        Raises:
            EscapeError: If one of the leaves is trained too, or if a custom function's backward
                has turned out to be no derivative.
            TangentError: If a padded row is not at zero any more.
        """
        self._look_at_custom()
        self.look_at_padding()
        others = self._others_of.get(structure)
        if others is None:
            leaves = [v for v in structure.variables if v is not None and id(v) not in self._known]
            others = self._others_of[structure] = [weakref.ref(leaf) for leaf in leaves]
        for ref in others:
            leaf = ref()
            if leaf is None:
                continue
            now = version_of(leaf)
            if leaf not in self._versions:
                self._versions[leaf] = now
            elif self._versions[leaf] != now:
                raise EscapeError(
                    f"The loss depends on a tensor of shape {tuple(leaf.shape)} that changes from "
                    "step to step but is not among the watched optimizer's parameters "
                    f"({_who_moves(leaf)}). How it depends on the hyperparameters is unknown. Put "
                    "all parameters into one optimizer, as several param groups."
                )


def _who_moves(leaf: Tensor) -> str:
    trainer = trainer_of(leaf)
    return (
        "what writes it is not known"
        if trainer is None
        else f"a second optimizer, {trainer}, trains it"
    )


def _is_half(nodes: Sequence[Node], structure: Structure) -> bool:
    return any(
        meta.dtype in _HALF
        for node, leaf in zip(nodes, structure.variables, strict=True)
        if leaf is None
        for meta in output_metadata(node)
        if meta is not None
    )


# torch differentiates the backward of these twice, but holds their statistics constant as it does.
_WRONG_THIRD = {
    "NativeLayerNormBackwardBackward0",
    *(f"{kernel}BatchNormBackwardBackward0" for kernel in ("Native", "Cudnn", "Miopen")),
}
_THIRD = (
    "The loss contains a gradient through layer or batch norm (a gradient penalty), and torch's "
    "third derivative of these is not right."
)


def refusal(node: Node) -> str | None:
    """Why a node must not be differentiated twice; ``None`` if it may be."""
    function: Any = custom_function(node)
    if function is None:
        return _THIRD if node_name(type(node)) in _WRONG_THIRD else None
    name, home = function.__name__, function.__module__
    if name == "CompiledFunction":
        return (
            "torch.compile's backward can be run once only, and has no second derivative. Train "
            "the model itself, or compile it with backend='eager'."
        )
    if home.startswith("torch.utils.checkpoint"):
        return (
            "A reentrant checkpoint hides its inside from autograd. Pass use_reentrant=False to "
            "torch.utils.checkpoint.checkpoint."
        )
    if home.startswith(_OWN):
        return None
    if computes_only(function.backward) and all(map(is_plain_value, vars(node).values())):
        return None
    return (
        f"The backward of {name}, a custom torch.autograd.Function, may have no second derivative "
        "or effects of its own: expected one that only computes with torch, without "
        "once_differentiable and without writing anything."
    )


def refusal_of_quantization(node: Node) -> str | None:
    """Why fake quantization has gradients that are no derivative; ``None`` for any other node."""
    if not node_name(type(node)).startswith(_STRAIGHT_THROUGH):
        return None
    return (
        "The loss contains torch's fake quantization (quantization-aware training), whose "
        "backward is a straight-through estimate. A second derivative would take it for the "
        "derivative."
    )


def refusal_of_embedding(node: Node, nodes: Sequence[Node]) -> str | None:
    """Why an embedding has gradients that are no derivative; ``None`` if it has none of these.

    The row at ``padding_idx`` is read but gets no gradient, which is the same only while it stays
    as it is: at zero, where nothing but this embedding reads the table.

    Args:
        node: Any node.
        nodes: All nodes of the graph.
    """
    if node_name(type(node)) != _EMBEDDING:
        return None
    if _by_frequency(node):
        return (
            "embedding(scale_grad_by_freq=True) divides gradients by counts, so they are not "
            "those of the loss."
        )
    padding = _padding(node)
    if padding >= _NO_PADDING or _is_at_rest(node.next_functions[0][0], padding, nodes):
        return None
    return _PADDED.format(padding)


def _padded_row(node: Node) -> tuple[Tensor, int] | None:
    """The table of an embedding, and which of its rows gets no gradient."""
    if node_name(type(node)) != _EMBEDDING or _padding(node) >= _NO_PADDING:
        return None
    table = getattr(node.next_functions[0][0], "variable", None)
    return None if table is None else (table, _padding(node))


def _is_at_rest(table: Node, padding: int, nodes: Sequence[Node]) -> bool:
    leaf = getattr(table, "variable", None)
    readers = [n for n in nodes for child, _ in n.next_functions if child is table]
    return (
        leaf is not None
        and not bool(leaf[padding].any())
        and all(node_name(type(n)) == _EMBEDDING and _padding(n) == padding for n in readers)
    )
