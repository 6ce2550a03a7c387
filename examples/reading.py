"""Reading a finished study: what its storage knows, in a table and in figures.

Run ``python examples/quickstart.py`` first, or name your own storage: ``python
examples/reading.py --storage URL --study NAME``. Nothing is trained here and nothing written to
the storage; a study that is still running can be read, too.
Needs ``pip install optuna_glocal[examples]``; seconds on one CPU core.
"""

import argparse
import pathlib

import optuna

from optuna_glocal import Record, Schedule, summary
from optuna_glocal import visualization as v


def figures(study, trial):
    """Those of the whole study, and of one trial what it recorded."""
    yield "proposals", v.plot_proposals(study)
    yield "slice", v.plot_slice(study)
    yield "contour", v.plot_contour(study)
    yield "importances", v.plot_importances(study)
    yield "trust", v.plot_trust(study)
    yield "trajectory", v.plot_trajectory(trial)
    yield "eigenvalues", v.plot_eigenvalues(trial)
    if (schedule := Schedule.from_trial(trial)) is not None:
        yield "schedule", v.plot_schedule(schedule)


def show(study, folder):
    """Prints the study and writes its figures."""
    print(summary(study))
    trial = study.best_trial
    record = Record.read(trial)
    if record is None:
        print("\nThe best trial left no record: it was run without the callback.\n")
        return
    print(f"\nThe best trial's record: {record.status}")
    for name, partial in record.gradient.items():
        sd = record.gradient_sd.get(name, 0.0)
        print(f"  d loss / d {name:14} {partial:11.4g} ± {sd:.2g} at {trial.params[name]:.4g}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(study, trial):
        # plotly.js goes beside the figures once, so that they open offline.
        figure.write_html(folder / f"{name}.html", include_plotlyjs="directory")
    print(f"  figures in {folder}: {', '.join(sorted(f.stem for f in folder.glob('*.html')))}\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", default="sqlite:///glocal.db", help="any Optuna storage URL")
    parser.add_argument("--study", help="its name; default: every study of the storage")
    parser.add_argument("--out", default="figures", help="folder of the figures")
    parser.add_argument("--quick", action="store_true", help="make a tiny study first")
    args = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if args.quick:
        import quickstart

        quickstart.main(["--quick", "--storage", args.storage])
    names = [args.study] if args.study else optuna.get_all_study_names(args.storage)
    if not names:
        parser.error(f"{args.storage} holds no study: run examples/quickstart.py first")
    for name in names:
        study = optuna.load_study(study_name=name, storage=args.storage)
        show(study, pathlib.Path(args.out) / name)


if __name__ == "__main__":
    main()
