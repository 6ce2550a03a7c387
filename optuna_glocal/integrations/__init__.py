"""The training-loop callback in loops that belong to a framework.

A framework calls ``loss.backward()`` itself, and may make, wrap and step the optimizer as well.
The callback follows the steps through the optimizer's own hooks; what is left to do is to route
the framework's backward through it, and to enter and leave it at the right moments.

Frameworks whose loop is called from the user's own function need no class, only the framework's
backward routed (:meth:`~optuna_glocal.GlocalCallback.routed`)::

    with GlocalCallback(trial, optimizer, validation_loss, horizon=1000) as glocal:
        backward = glocal.routed(accelerator.backward)  # Accelerate; fabric.backward in Fabric
        trainer = Engine(glocal.routed(update))         # Ignite

Lightning's and Hugging Face's trainers make the optimizer themselves. Each has a class here, one
file and one optional extra (``pip install 'optuna_glocal[lightning]'``, ``[transformers]``):

* :class:`~optuna_glocal.integrations.lightning.LightningGlocalCallback`, a callback of
  ``lightning.pytorch.Trainer``;
* :class:`~optuna_glocal.integrations.transformers.GlocalTrainer`, a ``transformers.Trainer``, and
  ``GlocalTrainerMixin`` for any other trainer derived from it.

Both take the trial and hand ``tune=``, ``observe=`` and the like to a
:class:`~optuna_glocal.GlocalCallback` of theirs. Neither reports intermediate values or prunes:
what the frameworks and optuna-integration have for that goes beside them.

May import ``training``, and ``hypergradient.schedulers.huggingface`` to mark schedulers that have
a floor.
"""

from __future__ import annotations


def missing(name: str, extra: str, error: ImportError) -> ImportError:
    """What to say where a framework, or a part of it, is not installed."""
    return ImportError(
        f"optuna_glocal.integrations.{extra} needs {name} ({error}). Install it with "
        f"`pip install 'optuna_glocal[{extra}]'`."
    )
