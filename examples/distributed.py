"""One study, many worker processes, on as many machines as can reach its storage.

Run the same line on every machine: ``python examples/distributed.py --storage URL --workers 4``,
with the URL of a PostgreSQL or MySQL database (``postgresql+psycopg://user@host/name``). Where
workers cannot reach the database, one machine that can serves it to them, on a network that you
trust, since the proxy asks for no password: ``python examples/distributed.py --storage URL --serve
13000``, and the workers say ``--proxy HOST:13000`` instead of ``--storage``. Needs ``pip install
optuna_glocal[examples]`` and the database's driver (``psycopg[binary]``, ``PyMySQL``); the proxy
needs ``grpcio`` and ``protobuf``.
"""

import argparse
import multiprocessing
import os

import optuna
import torch
from digits import Task

from optuna_glocal import GlocalSampler, Record

STUDY = "digits, distributed"


def opened(args):
    """The storage; each process opens its own, since connections cannot be shared."""
    if args.proxy:
        host, port = args.proxy.rsplit(":", 1)
        return optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    return optuna.storages.get_storage(args.storage)


def work(args):
    """One worker. All may have one seed: proposals also depend on the trial's number."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name=STUDY,
        storage=opened(args),
        sampler=GlocalSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=args.steps // 5),
    )
    objective = Task(args.steps).objective

    def mine(trial):
        trial.set_user_attr("worker", f"{os.uname().nodename}:{os.getpid()}")
        return objective(trial)

    enough = optuna.study.MaxTrialsCallback(args.trials)
    study.optimize(mine, n_trials=args.trials, callbacks=[enough])


def report(study):
    """What the workers did, and whether every finished trial left its record."""
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    trials = study.get_trials(states=ended)
    records = [Record.read(trial) for trial in trials]
    own = sum(r is not None and r.number == t.number for r, t in zip(records, trials, strict=True))
    workers = {trial.user_attrs["worker"] for trial in trials}
    print(f"best value   {study.best_value:.4f} (trial {study.best_trial.number})")
    print(f"trials       {len(trials)} by {len(workers)} workers, {own} with a record")


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", default="sqlite:///glocal.db", help="a database's URL")
    parser.add_argument("--proxy", help="HOST:PORT of a process that serves the storage")
    parser.add_argument("--serve", type=int, metavar="PORT", help="be that process")
    parser.add_argument("--workers", type=int, default=2, help="processes on this machine")
    parser.add_argument("--trials", type=int, default=30, help="complete trials of all workers")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a full trial")
    return parser.parse_args(argv)


def main(argv=None):
    """Serves the storage, or starts workers and reports when they are done."""
    args = parse(argv)
    if args.serve:
        optuna.storages.run_grpc_proxy_server(opened(args), host="0.0.0.0", port=args.serve)
        return
    study = optuna.create_study(study_name=STUDY, storage=opened(args), load_if_exists=True)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(args,)) for _ in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    report(study)


if __name__ == "__main__":
    main()
