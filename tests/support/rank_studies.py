"""Workers of one study, each of whose trials is trained by two processes."""

import os
import socket
import sys
import warnings

import optuna
import torch
import torch.distributed as dist
from optuna_integration import TorchDistributedTrial
from torch import nn

from optuna_glocal import GlocalCallback, GlocalSampler

STEPS = 24
NAME = "ranks"


def objective(trial):
    """A self-tuned run under DDP, each process with half of the data."""
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = x[:, :1].sin() + 0.1 * torch.randn(64, 1)
    mine = slice(dist.get_rank(), None, 2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    whole = nn.parallel.DistributedDataParallel(model)
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum)

    def loss(f):
        return (f(x[mine]) - y[mine]).square().mean()

    with GlocalCallback(trial, optimizer, lambda: loss(model), horizon=STEPS, tune="lr") as glocal:
        for _ in range(STEPS):
            optimizer.zero_grad()
            glocal.backward(loss(whole))
            optimizer.step()
        return glocal.best_of(lambda: loss(model).item())


def worker(url, rank, port, trials):
    """One of the two processes of a worker; the first one alone knows the storage."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    study = None
    if rank == 0:
        study = optuna.load_study(study_name=NAME, storage=url, sampler=GlocalSampler(seed=0))
    for _ in range(trials):
        asked = study.ask() if study else None
        value = objective(TorchDistributedTrial(asked))
        if study:
            study.tell(asked, value)
    dist.barrier()
    dist.destroy_process_group()


def forked(*arguments):
    """A child process that does :func:`worker`'s work and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        worker(*arguments)
        code = 0
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def warm_up():
    """Imports in this process what each child would import for itself."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=GlocalSampler(seed=0))
    p = torch.ones(2, requires_grad=True)

    def short(trial):
        optimizer = torch.optim.SGD([p], trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        with GlocalCallback(trial, optimizer, lambda: (p**2).sum(), horizon=2, tune="lr") as run:
            for _ in range(2):
                run.backward((p**2).sum())
                optimizer.step()
            return run.best_of(lambda: (p**2).sum().item())

    study.optimize(short, n_trials=6)


def main(_, url, workers, trials):
    """Forks all processes off this one."""
    optuna.create_study(study_name=NAME, storage=url)
    warm_up()
    ports = free_ports(workers)
    children = [forked(url, rank, port, trials) for port in ports for rank in (0, 1)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes
