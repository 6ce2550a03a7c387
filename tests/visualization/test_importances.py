"""Importances are sizes of gradients, sorted."""

import numpy as np
from studies import traces

from optuna_glocal import summary
from optuna_glocal import visualization as v


def test_importances_are_the_sizes_of_the_slopes_sorted(study):
    figure = v.plot_importances(study)
    found = summary(study).hyperparameters
    ticks = figure.layout.yaxis.ticktext
    assert [tick.split("<br>")[0] for tick in ticks] == [s.name for s in found[::-1]]
    median = traces(figure, "median")[0]
    np.testing.assert_allclose(median.x, [s.importance for s in found[::-1]])
    ends = np.array([s.quartiles for s in found[::-1]])
    np.testing.assert_allclose(np.add(median.x, median.error_x.array), ends[:, 1])
    np.testing.assert_allclose(np.subtract(median.x, median.error_x.arrayminus), ends[:, 0])
    for label, symbol, sign in (("larger", "right", -1), ("smaller", "left", 1)):
        (dots,) = (t for t in figure.data if t.name.endswith(label))
        assert dots.marker.symbol == f"triangle-{symbol}"
        wanted = [abs(s) for each in found[::-1] for s in each.slopes if s * sign > 0]
        np.testing.assert_allclose(dots.x, wanted)
