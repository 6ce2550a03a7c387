"""Two processes (gloo, CPU) that train one model."""

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


def spawn(work, folder, *first):
    """Runs ``work(rank, *first, port, folder)`` in each, to the end of both."""
    arguments = *first, servers.free_port(), str(folder)
    torch.multiprocessing.spawn(work, arguments, nprocs=2)
