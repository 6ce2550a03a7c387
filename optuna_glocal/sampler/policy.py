"""What is proposed when: startup, the model, its alternation with other proposals, the fallback.

In this order:

1. **Descent.** In many dimensions, and while gradients are at hand and lead downwards, proposals
   are the least values of a model of the best trial's neighbourhood
   (:mod:`optuna_glocal.sampler.descent`), from the second trial on. With few dimensions, and where
   the descent has ended, what follows.
2. **Startup.** The first trials fill the space evenly.
3. **Gate.** A model of values and gradients is used while it predicts left-out trials no worse
   than a model of values alone (:mod:`optuna_glocal.sampler.surrogate`); else the latter is.
4. **Acquisition.** The point at which the expected improvement is greatest; in trials with an odd
   number the point at which the mean is least, where the gradients are more signal than noise. In
   many dimensions some region is always unknown enough for expected improvement to go there.
5. **Fallback.** Once the model of gradients expects little improvement, trials with an odd number
   are left to another sampler: a model that is sure of having found the optimum may be wrong.

No Optuna here: a :class:`Situation` holds all that a proposal depends on.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.acquisition import LeastMean, LogEI, MakeAcquisition
from optuna_glocal.sampler.acquisition_search import maximise, maximise_along
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.descent import can_descend, descend
from optuna_glocal.sampler.initial_design import fill
from optuna_glocal.sampler.proposal import Proposal, Starts
from optuna_glocal.sampler.space import Space
from optuna_glocal.sampler.surrogate import Surrogate, build

# Log expected improvement, in standard deviations of the values seen so far, below which every
# second proposal is the fallback's.
_LITTLE = math.log(1e-3)
# How far below the best value the least mean must be to be worth a trial, in the same units.
_WORTHWHILE = 1e-3
# With more complete trials than this a GPSampler takes seconds per proposal.
_MOST_FOR_GPSAMPLER = 300


@dataclass(frozen=True)
class Situation:
    """All that a proposal depends on, besides the policy.

    Attributes:
        asking: Numbers of the trials that ask at this moment: earlier ones, for which no proposal
            is stored yet, and last the one to propose for.
        space: The search space.
        data: Finished trials.
        running: Points on which other workers are busy, shape (m, D).
        failed: Points of trials that failed, shape (k, D).
        starts: Hyperparameters of the latest fit.
        complete: Number of complete trials among those of ``data``; the others are pruned.
        pruned: Number of pruned trials that recorded something.
    """

    asking: Sequence[int]
    space: Space
    data: Data
    running: FloatArray
    failed: FloatArray
    starts: Starts
    complete: int
    pruned: int

    @property
    def number(self) -> int:
        """Number of the trial to propose for."""
        return self.asking[-1]


@dataclass(frozen=True)
class Declined:
    """The model makes no proposal: the fallback shall.

    Attributes:
        reason: Why, in a few words.
    """

    reason: str


@dataclass(frozen=True)
class Policy:
    """What is proposed when.

    Attributes:
        seed: Of all proposals.
        n_startup: Number of startup trials, at least 1.
        use_gradients: Whether the model is shown gradients.
        has_own_fallback: Whether the user gave a fallback; it then replaces the model wherever
            gradients are missing or misleading.
        acquisition: Makes the function that a proposal maximises.
    """

    seed: int
    n_startup: int
    use_gradients: bool = True
    has_own_fallback: bool = False
    acquisition: MakeAcquisition = LogEI

    def derived_seed(self, number: int, purpose: str) -> int:
        """A seed for one purpose in the trial ``number``."""
        entropy = [self.seed, number, zlib.crc32(purpose.encode())]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def is_startup(self, n: int) -> bool:
        """Whether ``n`` trials are too few for the model."""
        return n < self.n_startup

    def descent(self, now: Situation) -> Proposal | None:
        """The next step of the descent; ``None`` where the model shall propose.

        Of workers that ask at the same moment the first one is given it.
        """
        if not self.use_gradients or len(now.asking) > 1 or not can_descend(now.data, now.space):
            return None
        x = descend(now.data, now.space, np.concatenate([now.running, now.failed]))
        return None if x is None else Proposal(now.space.decode(x), "descent", now.starts)

    def startup(self, now: Situation) -> Proposal:
        """A point in the emptiest part of the space."""
        seen = np.concatenate([now.data.X, now.running])
        for number in now.asking:
            x = self._filled(seen, now.space, number, "startup")
            seen = np.concatenate([seen, x[None]])
        return Proposal(now.space.decode(x), "startup")

    def apart(self, taken: FloatArray, space: Space, number: int, starts: Starts) -> Proposal:
        """A point in the emptiest part of the space, away from those of other workers.

        Args:
            taken: Points of other workers, shape (m, D).
            space: The search space.
            number: Number of the trial to propose for.
            starts: Hyperparameters of the latest fit, to be stored with the proposal.
        """
        x = self._filled(taken, space, number, "apart")
        return Proposal(space.decode(x), "apart from other workers", starts)

    def by_model(self, now: Situation) -> Proposal | Declined:
        """The model's proposal, or why the fallback shall make it.

        Raises:
            numpy.linalg.LinAlgError: If no covariance matrix can be factored.
        """
        data = now.data if self.use_gradients else now.data.without_gradients()
        prefers_fallback = self.has_own_fallback and self._may_fall_back(now)
        if prefers_fallback and not data.has_gradients:
            return Declined("no gradients")
        judged = surrogate = build(data, now.space.categorical, now.starts)
        reason = "gradient model" if judged.uses_gradients else "value model"
        if not judged.trusted:
            if prefers_fallback:
                return Declined("gradients disagree")
            start = judged.starts[1]
            bare = data.without_gradients()
            surrogate = build(bare, now.space.categorical, (start, start))
            reason = "value model: gradients disagree"
        x, gain = self._search(surrogate, now)
        is_sure = surrogate.uses_gradients and gain < _LITTLE
        if is_sure and now.number % 2 and self._may_fall_back(now):
            return Declined("little left to gain")
        return Proposal(now.space.decode(x), reason, judged.starts)

    def along(
        self, data: Data, space: Space, name: str, x: FloatArray, running: FloatArray
    ) -> FloatArray:
        """The best point that differs from ``x`` (D,) in the parameter ``name`` alone, shape (D,).

        Args:
            data: Finished trials that have the parameter.
            space: Its search space: the parameter and others that are known already.
            name: The parameter to choose.
            x: A point that has the other parameters, shape (D,).
            running: Points on which other workers are busy, shape (m, D).

        Raises:
            numpy.linalg.LinAlgError: If no covariance matrix can be factored.
        """
        data = data if self.use_gradients else data.without_gradients()
        surrogate = build(data, space.categorical)
        if not surrogate.trusted:
            surrogate = build(data.without_gradients(), space.categorical)
        surrogate = surrogate.expecting(running)
        acquisition = self.acquisition(surrogate.gp, surrogate.best)
        return maximise_along(acquisition, space, list(space.distributions).index(name), x)

    def _filled(self, seen: FloatArray, space: Space, number: int, purpose: str) -> FloatArray:
        rng = np.random.default_rng(self.derived_seed(number, purpose))
        return fill(seen, space, self.n_startup, rng)

    def _may_fall_back(self, now: Situation) -> bool:
        """Whether the fallback's proposal would be worth having.

        GPSampler knows complete trials only. Without enough of them it proposes at random, and
        where trials are pruned it proposes the point that was pruned last again and again.
        """
        if self.has_own_fallback:
            known = now.complete >= self.n_startup
        else:
            known = self.n_startup <= now.complete <= _MOST_FOR_GPSAMPLER and not now.pruned
        return self.use_gradients and known

    def _search(self, surrogate: Surrogate, now: Situation) -> tuple[FloatArray, float]:
        """The point for ``now.number``, shape (D,), and the log expected improvement.

        Workers that ask at the same moment see the same trials and would all be given the same
        point, so what the earlier ones are being given is worked out here and kept away from.
        """
        surrogate = surrogate.expecting(now.running)
        for i, number in enumerate(now.asking):
            rng = np.random.default_rng(self.derived_seed(number, "search"))
            acquisition = self.acquisition(surrogate.gp, surrogate.best)
            x, _ = maximise(acquisition, now.space, surrogate.incumbents, rng)
            gain = float(LogEI(surrogate.gp, surrogate.best).value(x[None])[0])
            if number % 2 and surrogate.sees_slopes:
                lowest = _least_mean(surrogate, now.space, rng)
                x = x if lowest is None else lowest
            if i + 1 < len(now.asking):
                surrogate = surrogate.expecting(x[None])
        return x, gain


def _least_mean(surrogate: Surrogate, space: Space, rng: np.random.Generator) -> FloatArray | None:
    """Where the mean is least, shape (D,); ``None`` if that is hardly below the best value."""
    gp, best = surrogate.gp, surrogate.best
    acquisition = LeastMean(gp, best)
    x, _ = maximise(acquisition, space, surrogate.incumbents, rng, n_sobol=128, n_starts=2)
    return x if float(gp.posterior(x[None])[0][0]) < best - _WORTHWHILE else None
