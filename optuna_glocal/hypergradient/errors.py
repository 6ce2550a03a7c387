"""What failed, as a sentence for the user."""

from __future__ import annotations


class TangentError(RuntimeError):
    """The tangents cannot be carried any further; the sentence says why."""


def undifferentiable(error: BaseException) -> str:
    """A sentence for what has no second derivative, with the cure where one is known."""
    cure = ""
    if "attention" in str(error):
        cure = " Set torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the model."
    return f"The graph could not be differentiated twice: {words(error)}.{cure}"


def words(error: BaseException) -> str:
    """One line for the user: our own sentences as they are, others with their type."""
    text = str(error).strip().split("\n")[0]
    ours = isinstance(error, (TangentError, ScheduleError))
    return text if ours else f"{type(error).__name__}: {text}"


class ScheduleError(ValueError):
    """The derivative of a scheduled entry by its base is not known; the sentence says why."""


class UnknownChangeError(ValueError):
    """The gradient was changed in a way that is neither clipping nor scaling."""
