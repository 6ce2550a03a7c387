"""What each of two processes does in ``tests/system/test_resume_frameworks.py``."""

import functools
import logging
import os
import pathlib
import warnings

import optuna
import torch
import torch.distributed as dist
from averaged import TRAIN, VALID, X, Y
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from two_ranks import TorchDistributedTrial, joined

from optuna_glocal import GlocalCallback, Tune

EPOCHS, AT = 6, (0, 3)  # 8 steps each; checkpoints in the first quarter of the run, and after it
# Without a decay the averages of so noisy a run are better than its last weights.
BOX, OPTIONS = {"lr": (1e-5, 1.0)}, Tune(anneal=False)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def validation_batches():
    return DataLoader(TensorDataset(X[VALID], Y[VALID]), 64)


def training_batches():
    # In this order no batch is so unlike the others that the rate ceases to climb.
    return DataLoader(TensorDataset(X[TRAIN].flip(0), Y[TRAIN].flip(0)), 8)


def loss_of(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def whole_tensors(model):
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.items()}
    return {k: v.detach().clone() for k, v in state.items()}


def shared(model, optimizer):
    """The callback of a trial that all ranks have, and one writes."""
    trial = TorchDistributedTrial(optuna.trial.FixedTrial({"lr": 1e-2}))
    trial.suggest_float("lr", *BOX["lr"], log=True)
    loss = functools.partial(loss_of, model, (X[VALID], Y[VALID]))
    return GlocalCallback(trial, optimizer, loss, horizon=48, tune=OPTIONS)


def left(model, glocal, logged):
    """All that a run leaves."""
    return {
        "written": sorted(glocal._trial.user_attrs),
        "weights": whole_tensors(model.state_dict()),
        "values": glocal.hyperparameters,
        "path": glocal.schedule.values.tolist(),
        "averaged": glocal.is_averaged,
        "logged": logged,
    }


def in_lightning(folder, begin, strategy="ddp"):
    """A fit that keeps a checkpoint of each epoch, or goes on after one."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from optuna_glocal.integrations.lightning import LightningGlocalCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.logged = net(), []

        def configure_model(self):
            if self.device_mesh is not None:
                mesh = self.device_mesh["data_parallel"]
                fully_shard(self.net[0], mesh=mesh)
                fully_shard(self.net, mesh=mesh)

        def training_step(self, batch, _):
            return loss_of(self.net, batch)

        def validation_step(self, batch, _):
            self.log("loss", loss_of(self.net, batch), sync_dist=True)

        def on_validation_epoch_end(self):
            self.logged.append(self.trainer.callback_metrics["loss"].item())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module()
    ours = LightningGlocalCallback(
        BOX, lambda: loss_of(module.net, (X[VALID], Y[VALID])), tune=OPTIONS
    )
    keep = ModelCheckpoint(folder / f"from {begin}", save_top_k=-1, filename="{epoch}")
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=2, logger=False, callbacks=[ours, keep],
        strategy=strategy if isinstance(strategy, str) else ModelParallelStrategy(*strategy),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,  # Lightning's would shuffle
    )  # fmt: skip
    path = None if begin is None else folder / "from None" / f"epoch={begin}.ckpt"
    data = training_batches().dataset
    mine = DataLoader(data, 8, sampler=DistributedSampler(data, shuffle=False))
    trainer.fit(module, mine, validation_batches(), ckpt_path=path)
    return left(module.net, ours.glocal, module.logged)


def in_lightning_sharded(folder, begin):
    return in_lightning(folder, begin, (2, 1))


def in_lightning_sharded_files(folder, begin):
    """Each rank writes its own part of the model."""
    return in_lightning(folder, begin, (2, 1, True))


def in_transformers(folder, begin):
    import hugging_face as hf

    hf.transformers.utils.logging.set_verbosity_error()
    options = {
        "lr_scheduler_type": "constant", "save_strategy": "epoch", "eval_strategy": "epoch",
        "num_train_epochs": EPOCHS, "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    ours = hf.trainer(
        folder / f"from {begin}", model=hf.gpt(0.1), trial=BOX, options=options,
        glocal_arguments={"tune": OPTIONS},
    )  # fmt: skip
    path = begin if begin is None else str(folder / "from None" / f"checkpoint-{8 * begin + 8}")
    ours.train(resume_from_checkpoint=path)
    logged = [row["eval_loss"] for row in ours.state.log_history if "eval_loss" in row]
    return left(ours.model, ours.glocal, logged[0 if begin is None else begin + 1 :])


def own_loop(folder, begin, model, optimizer, whole, batches, backward, save, load, begins=id):
    """A loop of the user's own, which validates the better weights."""
    logged = []
    with shared(model, optimizer) as run:
        begins(run)
        if begin is not None:
            load(run, folder / "from None" / str(begin))
        for epoch in range(0 if begin is None else begin + 1, EPOCHS):
            for batch in batches:
                optimizer.zero_grad()
                backward(run)(loss_of(whole, batch))
                optimizer.step()
            with run.best_weights(), torch.no_grad():
                logged.append(loss_of(model, (X[VALID], Y[VALID])).item())
            save(run, folder / f"from {begin}" / str(epoch))
        run.best_of(lambda: loss_of(model, (X[VALID], Y[VALID])).item())
        run.load_best()
    return left(model, run, logged)


def in_accelerate(folder, begin):
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), net()
    whole, optimizer, batches = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), 1e-2), training_batches()
    )

    return own_loop(
        folder, begin, model, optimizer, whole, batches,
        lambda run: run.routed(accelerator.backward),
        lambda run, path: accelerator.save_state(path),
        lambda run, path: accelerator.load_state(path),
        begins=accelerator.register_for_checkpointing,
    )  # fmt: skip


def in_fabric(folder, begin):
    from lightning.fabric import Fabric

    fabric, model = Fabric(accelerator="cpu", devices=2, strategy="ddp"), net()
    fabric.launch()
    whole, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), 1e-2))
    batches = fabric.setup_dataloaders(training_batches())

    def save(run, path):
        fabric.save(path, {"model": whole, "optimizer": optimizer, "run": run.state_dict()})

    def load(run, path):
        held = fabric.load(path, {"model": whole, "optimizer": optimizer})
        run.load_state_dict(held["run"])

    return own_loop(
        folder, begin, model, optimizer, whole, batches,
        lambda run: run.routed(fabric.backward), save, load,
    )  # fmt: skip


def in_ignite(folder, begin):
    """Each rank's own engine over DistributedDataParallel, with ignite's checkpoint handler."""
    import ignite.distributed as idist
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    model = net()
    whole, optimizer = idist.auto_model(model), torch.optim.AdamW(model.parameters(), 1e-2)
    data, logged = training_batches().dataset, []
    mine = DistributedSampler(data, shuffle=False)
    batches = idist.auto_dataloader(data, batch_size=16, sampler=mine)
    with shared(model, optimizer) as run:

        def update(engine, batch):
            optimizer.zero_grad()
            loss_of(whole, batch).backward()
            optimizer.step()

        trainer = Engine(run.routed(update))
        parts = {"model": model, "optimizer": optimizer, "run": run, "trainer": trainer}
        saver = DiskSaver(str(folder / f"from {begin}"), require_empty=False)
        keep = Checkpoint(parts, saver, n_saved=None)

        @trainer.on(Events.EPOCH_COMPLETED)
        def _():
            with run.best_weights(), torch.no_grad():
                logged.append(loss_of(model, (X[VALID], Y[VALID])).item())

        trainer.add_event_handler(Events.EPOCH_COMPLETED, keep)
        if begin is not None:
            (path,) = (folder / "from None").glob(f"*_{8 * begin + 8}.pt")
            Checkpoint.load_objects(parts, torch.load(path, weights_only=True))
        trainer.run(batches, max_epochs=EPOCHS)
        run.best_of(lambda: loss_of(model, (X[VALID], Y[VALID])).item())
        run.load_best()
    return left(model, run, logged)


RUNS = {
    "Lightning, DDP": in_lightning,
    "Lightning, FSDP2": in_lightning_sharded,
    "Lightning, FSDP2, files of all": in_lightning_sharded_files,
    "Accelerate": in_accelerate,
    "Fabric": in_fabric,
    "Ignite": in_ignite,
    "Hugging Face": in_transformers,
}


def work(rank, port, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="as torchrun sets it", TORCHELASTIC_RESTART_COUNT="0", GROUP_RANK="0",
    )  # fmt: skip
    with joined(rank, port):
        found = {}
        for name, run in RUNS.items():
            where = pathlib.Path(folder) / name
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = {begin: run(where, begin) for begin in (None, *AT)}
            dist.barrier()
        torch.save(found, pathlib.Path(folder) / f"{rank}.pt")
