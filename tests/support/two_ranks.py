"""Two processes (gloo, CPU) that train one model."""

import contextlib
import faulthandler
import importlib
import os

import servers
import torch
import torch.distributed as dist


class TorchDistributedTrial:
    """As optuna_integration's: rank 0 alone writes, and every call is a collective."""

    def __init__(self, trial):
        self._trial = trial

    def __getattr__(self, name):
        return getattr(self._trial, name)

    def set_user_attr(self, key, value):
        if dist.get_rank() == 0:
            self._trial.set_user_attr(key, value)
        dist.barrier()


#: What a process that is forked does not import anew.
PRELOADED = ["torch", "torch.distributed.fsdp", "optuna", "optuna_integration", "optuna_glocal"]


def start(work, *arguments, processes=1):
    """Runs ``work(number, *arguments)`` in processes forked off one that has imported torch.

    That one is started once for all tests.
    """
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(
        work, arguments, nprocs=processes, start_method="forkserver"
    )


def spawn(work, folder, *first, imports=()):
    """Runs ``work(rank, *first, port, folder)`` in each, to the end of both.

    Args:
        imports: Modules to import before the two part.
    """
    arguments = *first, servers.free_port(), str(folder)
    if imports:
        start(_part, imports, work, arguments)
    else:
        start(work, *arguments, processes=2)


def _part(_, imports, work, arguments):
    for name in imports:
        importlib.import_module(name)
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="fork")


@contextlib.contextmanager
def joined(rank, port):
    """Inside, the processes can talk to each other."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    faulthandler.dump_traceback_later(240, exit=True)  # a rank that waits for ever
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    yield
    dist.barrier()  # gloo aborts a rank whose peer leaves first
    dist.destroy_process_group()
