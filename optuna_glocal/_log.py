"""The package's logger, whose lines appear where those of Optuna do.

``logging.getLogger("optuna_glocal")`` passes its lines to Optuna's logger. They are printed among
Optuna's own, in its format, and settings of ``optuna.logging`` (``set_verbosity``,
``disable_default_handler``, ``enable_propagation``) apply to both. To silence this package alone,
use ``logging.getLogger("optuna_glocal").setLevel(logging.WARNING)``.

Levels: WARNING for what a user may want to change, INFO for one line per trial, DEBUG for why a
trial was proposed and what happened to its tangents during the run.
"""

from __future__ import annotations

import logging


class _ToOptuna(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        optuna = logging.getLogger("optuna")
        if optuna.isEnabledFor(record.levelno):
            optuna.handle(record)


def join_optuna() -> None:
    """Passes the package's lines to Optuna's logger. A second call changes nothing."""
    logger = logging.getLogger("optuna_glocal")
    if any(isinstance(handler, _ToOptuna) for handler in logger.handlers):
        return
    logger.addHandler(_ToOptuna())
    logger.setLevel(logging.DEBUG)  # Optuna's logger decides which lines are printed
    logger.propagate = False  # as Optuna's; else a configured root logger prints lines twice
