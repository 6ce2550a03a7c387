"""The package's logger, heard where Optuna's is.

``logging.getLogger("optuna_glocal")`` hands its lines to Optuna's logger: they stand among
Optuna's own, in its format, and what a user says to ``optuna.logging`` (``set_verbosity``,
``disable_default_handler``, ``enable_propagation``) holds for both. A level of its own silences
it alone: ``logging.getLogger("optuna_glocal").setLevel(logging.WARNING)``.

WARNING is for what a user may want to change, INFO is one line per trial, DEBUG says why a trial
was proposed and what became of its tangents on the way.
"""

from __future__ import annotations

import logging


class _ToOptuna(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        optuna = logging.getLogger("optuna")
        if optuna.isEnabledFor(record.levelno):
            optuna.handle(record)


def join_optuna() -> None:
    """Hands the package's lines to Optuna's logger; doing it twice changes nothing."""
    logger = logging.getLogger("optuna_glocal")
    if any(isinstance(handler, _ToOptuna) for handler in logger.handlers):
        return
    logger.addHandler(_ToOptuna())
    logger.setLevel(logging.DEBUG)  # which lines are heard is up to Optuna's logger
    logger.propagate = False  # as Optuna's: else a configured root would print every line twice
