"""Failures of hypergradients, each with a sentence for the user."""

from __future__ import annotations


class TangentError(RuntimeError):
    """The tangents cannot be carried any further; the message says why."""


class EscapeError(TangentError):
    """Something happened that the tangents do not know of, maybe some steps ago.

    So what they have said before is not to be trusted either.
    """


def undifferentiable(error: BaseException) -> str:
    """A sentence for a graph without second derivatives, with the remedy if one is known."""
    cure = ""
    if "attention" in str(error):
        cure = " Set torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the model."
    return f"The graph could not be differentiated twice: {words(error).rstrip('.')}.{cure}"


def words(error: BaseException) -> str:
    """The first line of an error; with its type, unless the message is a sentence of ours."""
    text = str(error).strip().split("\n")[0]
    ours = isinstance(error, (TangentError, ScheduleError))
    return text if ours else f"{type(error).__name__}: {text}"


class ScheduleError(ValueError):
    """The derivative of a scheduled entry by its base is unknown; the message says why."""


class UnknownChangeError(ValueError):
    """A gradient was changed in a way that is neither clipping nor scaling."""
