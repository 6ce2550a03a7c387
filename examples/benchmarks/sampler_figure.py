"""The figure of the sampler's OptunaHub page: regret by trial with exact gradients.

``python examples/benchmarks/sampler_figure.py`` takes two minutes (30 trials, five seeds from 100)
and writes ``examples/optunahub/package/samplers/glocal/images/benchmark.png``. Needs matplotlib.
"""

import pathlib
import warnings

import numpy as np
import optuna
from matplotlib import pyplot
from problems import PROBLEMS
from samplers import curve

TRIALS, SEEDS, LEAST = 30, range(100, 105), 1e-9
NAMES = {
    "ours": "GlocalSampler",
    "VAL": "GlocalSampler, values only",
    "GPSampler": "GPSampler",
    "TPE": "TPESampler",
}
PLACE = pathlib.Path(__file__).parents[1] / "optunahub/package/samplers/glocal/images"


def main():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, problem in zip(panels, ("Hartmann 6", "Rosenbrock 4"), strict=True):
        for name, label in NAMES.items():
            curves = [curve(name, PROBLEMS[problem], seed, TRIALS) for seed in SEEDS]
            median = np.maximum(np.median(curves, axis=0), LEAST)
            panel.plot(range(1, TRIALS + 1), median, label=label, linewidth=2)
        panel.set(title=problem.replace(" ", ", D = "), xlabel="trials", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"best value - minimum, median of {len(SEEDS)} seeds")
    panels[1].legend(frameon=False, fontsize=9)
    PLACE.mkdir(exist_ok=True)
    figure.savefig(PLACE / "benchmark.png", dpi=110)


if __name__ == "__main__":
    main()
