"""Lightning and Hugging Face on two processes (gloo, CPU), as torchrun starts them."""

import os
import warnings

import loops
import numpy as np
import optuna
import pytest
import torch
import torch.distributed as dist
import two_ranks
from torch.utils.data import DataLoader, DistributedSampler

from optuna_glocal import GlocalCallback, Record

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.usefixtures("thawed"),
]
STEPS = loops.EPOCHS * loops.BATCHES // 2


def in_lightning(trial, watch=True, tune=False):
    """Batches of 16 on either rank, or of 32 on one."""
    import lightning.pytorch as pl
    from lightning_module import Module

    from optuna_glocal.integrations.lightning import LightningGlocalCallback

    task = loops.Task(trial or loops.new_trial())
    task.model[2].p = 0.0  # each rank would drop others
    how = {"tune": True} if tune else loops.WATCH
    ours = LightningGlocalCallback(trial, task.validation_loss, **how)
    trainer = pl.Trainer(
        max_epochs=loops.EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, devices=2, strategy="ddp",
        callbacks=[ours] if watch else [], limit_val_batches=0,
        use_distributed_sampler=False,  # Lightning's would shuffle
    )  # fmt: skip
    mine = DistributedSampler(task.data, shuffle=False)
    trainer.fit(Module(task), DataLoader(task.data, batch_size=loops.BATCH, sampler=mine))
    return task.weights(), ours.glocal


def as_one(trial, tune=False):
    """The same in plain torch, with the joint batch."""
    task = loops.Task(trial)
    task.model[2].p = 0.0
    optimizer = task.optimizer()
    scheduler = task.scheduler(optimizer)
    how = {"tune": True} if tune else loops.WATCH
    with GlocalCallback(trial, optimizer, task.validation_loss, horizon=STEPS, **how) as glocal:
        for _ in range(loops.EPOCHS):
            for batch in DataLoader(task.data, batch_size=2 * loops.BATCH):
                task.model.train()
                optimizer.zero_grad()
                glocal.backward(task.loss(batch))
                optimizer.step()
                scheduler.step()
    if tune:
        glocal.keep_best()
    return task.weights(), glocal


def in_transformers(trial, watch=True, tune=False, batch=8):
    import tempfile

    import hugging_face as hf
    from transformers import Trainer

    hf.transformers.utils.logging.set_verbosity_error()
    how = {"tune": True} if tune else hf.WATCH
    kind = {"trial": trial, "glocal_arguments": how} if watch else {"kind": Trainer}
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 1}
    with tempfile.TemporaryDirectory() as folder:
        ours = hf.trainer(folder, model=hf.gpt(0.0), options=options, **kind)
        ours.train()
    return ours.model.state_dict(), getattr(ours, "glocal", None)


def space_of(run):
    if run is in_lightning:
        return loops.new_trial().params, loops.space
    import hugging_face as hf

    return hf.fixed().params, hf.space


def work(rank, run, port, folder):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="as torchrun sets it",
        TORCHELASTIC_RESTART_COUNT="0", GROUP_RANK="0",
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo")
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params, space = space_of(run)
        storage = f"sqlite:///{folder}/study.db"
        study = optuna.create_study(study_name="s", storage=storage) if rank == 0 else None
        for name in ("shared", "rank 0 alone", "unwatched", "tuned"):
            trial = None
            if rank == 0:
                study.enqueue_trial(params)
                trial = study.ask()
            if name in ("shared", "tuned"):
                from optuna_integration import TorchDistributedTrial

                trial = TorchDistributedTrial(trial)
            if trial is not None:
                space(trial)
            weights, glocal = run(trial, watch=name != "unwatched", tune=name == "tuned")
            found[name] = {
                "weights": {k: v.clone() for k, v in weights.items()},
                "h": glocal.trajectory.hypergradients if glocal else None,
                "status": glocal.status if glocal else "",
                "hyperparameters": glocal.hyperparameters if glocal else {},
            }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # gloo aborts a rank whose peer leaves first
    dist.destroy_process_group()


def spawn(run, folder, *imports):
    two_ranks.spawn(work, folder, run, imports=imports)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/study.db")
    return ranks, study.get_trials()


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_two_are_one(ranks, trials, weights, glocal):
    exact = glocal.trajectory.hypergradients
    assert np.isfinite(exact[1:4]).all() and exact[1:4].all()
    for rank in ranks:
        shared = rank["shared"]
        got, scale = shared["h"], np.nanmax(np.abs(exact), axis=0)
        np.testing.assert_allclose(got / scale, exact / scale, rtol=0, atol=1e-9)
        for name, weight in weights.items():
            limit = 1e-10 * weight.abs().max().item()
            torch.testing.assert_close(shared["weights"][name], weight, rtol=0, atol=limit)
            for key in (
                "shared",
                "rank 0 alone",
            ):  # bit for bit: of either rank, and with us as without
                assert torch.equal(
                    rank[key]["weights"][name], ranks[0]["unwatched"]["weights"][name]
                )
    shared, alone, unwatched, _ = trials
    assert Record.read(shared).steps == STEPS
    assert "TorchDistributedTrial on every rank" in ranks[0]["rank 0 alone"]["status"]
    assert Record.read(alone).gradient == {} and ranks[1]["rank 0 alone"]["h"] is None
    assert not unwatched.user_attrs


def assert_two_tune_as_one(ranks, trials, weights, glocal):
    first, second = (rank["tuned"] for rank in ranks)
    assert first["status"] == second["status"]  # under a decay the rate may be right as it is
    assert first["hyperparameters"] == second["hyperparameters"]
    for name, value in glocal.hyperparameters.items():
        assert first["hyperparameters"][name] == pytest.approx(value, rel=1e-6)
    for name, weight in weights.items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-6, atol=1e-8)
    assert Record.read(trials[3]).tuned


def test_lightning(tmp_path, double):
    loops.framework("lightning")
    pytest.importorskip("optuna_integration")
    ranks, trials = spawn(in_lightning, tmp_path, "lightning.pytorch")
    assert_two_are_one(ranks, trials, *as_one(loops.new_trial()))
    assert_two_tune_as_one(ranks, trials, *as_one(loops.new_trial(), tune=True))


def test_transformers(tmp_path, double):
    loops.framework("transformers")
    loops.framework("accelerate")
    pytest.importorskip("optuna_integration")
    from hugging_face import fixed

    ranks, trials = spawn(in_transformers, tmp_path, "transformers.trainer")
    assert_two_are_one(ranks, trials, *in_transformers(fixed(), batch=16))
    assert_two_tune_as_one(ranks, trials, *in_transformers(fixed(), tune=True, batch=16))
