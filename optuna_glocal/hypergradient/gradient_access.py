"""Whether the training loop may have got hold of its gradients since the last look at them."""

from __future__ import annotations


class GradientAccess:
    """Told of it by whoever sees the loop's calls of torch.

    Example:
        >>> access = GradientAccess()
        >>> access.is_ruled_out  # nobody looks on
        False
        >>> access.begin(is_told=True)
        >>> access.is_ruled_out
        True
        >>> access.is_read = True
        >>> access.is_ruled_out
        False
    """

    def __init__(self) -> None:
        self._is_told = False
        #: Whether a ``grad`` was read, or something was called that may have read one unseen.
        self.is_read = False

    def begin(self, *, is_told: bool) -> None:
        """It is the loop's turn.

        Args:
            is_told: Whether somebody sees what it calls.
        """
        self._is_told, self.is_read = is_told, False

    @property
    def is_ruled_out(self) -> bool:
        """Whether the loop has certainly read no gradient in its last turn."""
        return self._is_told and not self.is_read
