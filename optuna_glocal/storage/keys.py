"""Every key under which a trial keeps something of ours, and what is there.

All are user attributes but the proposal, which is a system attribute as those of Optuna's own
samplers are. A value too long for one attribute continues under ``{key}:0``, ``{key}:1``, ...
(:mod:`optuna_glocal.storage.attributes`).
"""

from __future__ import annotations

#: Version of the formats below; a reader ignores any other.
VERSION = 1

#: What the trial knows of its objective and gradient: a ``Record`` as JSON.
RECORD = "glocal:record"
#: The record's value as a plain number, which dashboards can sort and plot.
FORECAST = "glocal:forecast"
#: Losses and hypergradients of the run: a ``Trajectory``, float32 in base64 in JSON. Optional.
TRAJECTORY = "glocal:trajectory"
#: Path of the hyperparameters of a self-tuned trial: a ``Schedule``, instead of a trajectory.
SCHEDULE = "glocal:schedule"
#: Followed by its name, shape and range of a vector that the trial has suggested: JSON.
VECTOR = "glocal:vector:"
#: Followed by its name, where a vector ended in a self-tuned trial: a ``LearntVector``.
LEARNT = "glocal:learnt:"
#: Followed by a name: where a self-tuned trial ended with that hyperparameter, a plain number.
FINAL = "glocal:final:"
#: How the sampler came to propose the trial's parameters, in a few words.
REASON = "glocal:reason"
#: The proposal itself, which other workers must know at once: JSON, in the system attributes.
PROPOSAL = "glocal:proposal"
