"""Proposals in storage: whole or ignored."""

import numpy as np
from optuna.distributions import FloatDistribution

from optuna_glocal.sampler.proposal import Proposal, latest_starts, running_points
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.keys import PROPOSAL

SPACE = Space.of({"x": FloatDistribution(1e-4, 1.0, log=True), "y": FloatDistribution(0.0, 2.0)})


def test_proposals_are_shared_whole_or_not_at_all():
    params = {"x": 0.01, "y": 1.5}
    text = Proposal(params, "startup", ([1.0], [2.0])).to_json(SPACE.distributions)
    attrs = {PROPOSAL: text}
    np.testing.assert_allclose(running_points([(attrs, {})], SPACE)[0], SPACE.encode(params))
    assert latest_starts([{}, attrs, {}], SPACE) == ([1.0], [2.0])
    # What was suggested already overrides what was proposed.
    suggested = running_points([(attrs, {"y": 0.0})], SPACE)[0]
    np.testing.assert_allclose(suggested, SPACE.encode({"x": 0.01, "y": 0.0}))
    for torn in (text[:-3], "[]", "3", '{"x":3}', '{"x":{"x":"a","y":[]}}', '{"starts":[1,2]}'):
        assert running_points([({PROPOSAL: torn}, {})], SPACE).shape == (0, 2)
        assert latest_starts([{PROPOSAL: torn}], SPACE) == ([], [])


def test_starts_of_other_parameters_are_not_taken():
    text = Proposal({"x": 0.01}, "startup", ([1.0], [2.0])).to_json(SPACE.distributions)
    assert latest_starts([{PROPOSAL: text}], SPACE) == ([], [])
