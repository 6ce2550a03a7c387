"""Trials that tune themselves, on the workers of a Dask cluster.

Run ``python examples/clusters/dask_workers.py``: a cluster of processes on this machine, digits of
scikit-learn, half a minute. For one that is there already give its scheduler's address:
``--address tcp://host:8786``. Needs ``pip install "optuna_glocal[examples,dask]"``; the workers
need it as well.
"""

import argparse
import os

import optuna
from optuna_integration import DaskStorage
from task import setup

import optuna_glocal


def objective(trial, steps):
    """The learning rate moves within the trial; its start is the study's."""
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    optimizer, training_loss, validation_loss, validate = setup(lr, seed=trial.number)
    with optuna_glocal.GlocalCallback(
        trial, optimizer, validation_loss, horizon=steps, tune=True
    ) as glocal:
        for _ in range(steps):
            optimizer.zero_grad()
            glocal.backward(training_loss())  # was: loss.backward()
            optimizer.step()
        trial.set_user_attr("worker", os.getpid())
        return glocal.best_of(validate)


def work(study, steps):
    """One trial, on the worker that Dask chooses."""
    study.optimize(lambda trial: objective(trial, steps), n_trials=1)


def main(argv=None):
    """Opens the cluster, runs the trials on it, and prints what came of them."""
    from distributed import Client, LocalCluster, wait

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a scheduler; default: a cluster on this machine")
    parser.add_argument("--workers", type=int, default=2, help="of the cluster on this machine")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of a trial")
    args = parser.parse_args(argv)
    cluster = args.address or LocalCluster(
        n_workers=args.workers, threads_per_worker=1, dashboard_address=None
    )
    with Client(cluster) as client:
        study = optuna.create_study(
            storage=DaskStorage(client=client), sampler=optuna_glocal.GlocalSampler(seed=0)
        )
        futures = [client.submit(work, study, args.steps, pure=False) for _ in range(args.trials)]
        wait(futures)
        client.gather(futures)  # raises what a worker has raised
        trials = study.get_trials()
        workers = {trial.user_attrs["worker"] for trial in trials}
        best = optuna_glocal.best_hyperparameters(study)
        print(f"{len(trials)} trials on {len(workers)} workers")
        print(f"best {study.best_value:.4f}, from lr {study.best_params['lr']:.2g}"
              f" to {best['lr']:.2g}")  # fmt: skip


if __name__ == "__main__":
    main()
