"""Options of the callback, written flat."""

from optuna_glocal import Observe, Tune


def options(tune=False, **fields):
    """The callback's arguments for fields of ``Observe``, or of ``Tune`` where the trial tunes."""
    if tune is False:
        return {"observe": Observe(**fields)}
    return {"tune": Tune(() if tune is True else tune, **fields)}
