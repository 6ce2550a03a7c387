"""A one-layer GPT-2 in the real Trainer."""

import optuna
import torch
import transformers

from optuna_glocal import Observe
from optuna_glocal.integrations.transformers import GlocalTrainer

NAMES = ("learning_rate", "weight_decay", "adam_beta1")
WATCH = {"observe": Observe(tangents=True, window=6, every=2)}


STEPS = 12


def space(trial):
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1.0, log=True),
        "adam_beta1": trial.suggest_float("adam_beta1", 0.5, 0.99),
    }


def fixed():
    params = {"learning_rate": 0.02, "weight_decay": 0.1, "adam_beta1": 0.9}
    trial = optuna.trial.FixedTrial(params)
    space(trial)
    return trial


def gpt(dropout=0.1):
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0, loss_type="ForCausalLM", resid_pdrop=dropout, embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    )  # fmt: skip


def trainer(folder, kind=GlocalTrainer, model=None, options=None, **arguments):
    torch.manual_seed(0)
    data = [{"input_ids": t, "labels": t} for t in torch.randint(0, 20, (64, 6))]
    chosen = {
        "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 0.02,
        "gradient_accumulation_steps": 2, "save_strategy": "no", **(options or {}),
    }  # fmt: skip
    args = transformers.TrainingArguments(
        str(folder), weight_decay=0.1, warmup_steps=2, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", **chosen,
    )  # fmt: skip
    given = {"model_init": lambda: gpt()} if model is None else {"model": model}
    return kind(args=args, train_dataset=data, eval_dataset=data[:8], **given, **arguments)
