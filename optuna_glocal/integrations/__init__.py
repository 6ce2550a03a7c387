"""Door 1 in training loops that belong to a framework, one file and one optional extra each.

Frameworks whose loop is called from the user's own function need no class, only the framework's
backward routed (:meth:`~optuna_glocal.GlocalCallback.routed`)::

    with GlocalCallback(trial, optimizer, validation_loss, horizon=1000) as glocal:
        backward = glocal.routed(accelerator.backward)  # Accelerate; fabric.backward in Fabric
        trainer = Engine(glocal.routed(update))         # Ignite

Lightning's and Hugging Face's trainers make the optimizer themselves; they have a class here.
"""

from __future__ import annotations


def missing(name: str, extra: str, error: ImportError) -> ImportError:
    """What to say where a framework, or a part of it, is not installed."""
    return ImportError(
        f"optuna_glocal.integrations.{extra} needs {name} ({error}). Install it with "
        f"`pip install 'optuna_glocal[{extra}]'`."
    )
