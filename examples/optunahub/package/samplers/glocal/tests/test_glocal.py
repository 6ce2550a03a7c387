"""The package as the registry loads it: files, front matter, README's example, example.py."""

from functools import partial
import inspect
from pathlib import Path
import re
import runpy

import optuna
import pytest


optunahub = pytest.importorskip("optunahub", reason="optunahub is not installed")
from optuna_glocal import Record


PACKAGE = Path(__file__).parents[1]
README = (PACKAGE / "README.md").read_text()
load = partial(optunahub.load_local_module, registry_root=str(PACKAGE.parents[1]))


def objective(trial):
    return (trial.suggest_float("x", -5, 5) - 2) ** 2


def test_it_loads_and_samples():
    sampler = load("samplers/glocal").GlocalSampler(seed=0, n_startup_trials=2)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=5)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 5
    assert study.best_value < study.trials[0].value


def test_it_is_laid_out_as_the_registry_asks():
    front = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))
    assert list(front) == ["author", "title", "description", "tags", "optuna_versions", "license"]
    assert "sampler" in re.split(r"[\[\], ]+", front["tags"]) and front["license"] == "MIT License"
    assert "5.0.0" in front["optuna_versions"]
    for image in re.findall(r"\]\((images/[^)]+)\)", README):
        assert (PACKAGE / image).is_file(), image
    for argument in inspect.signature(load("samplers/glocal").GlocalSampler).parameters:
        assert f"  - `{argument}`: " in README, argument
    for name in ("__init__.py", "example.py", "requirements.txt", "LICENSE"):
        assert (PACKAGE / name).is_file(), name
    assert re.findall("^## (.+)$", README, re.MULTILINE) == [
        "Abstract",
        "APIs",
        "Installation",
        "Example",
        "Others",
    ]


def test_the_readme_s_example_finds_the_minimum(monkeypatch, tmp_path):
    monkeypatch.setattr(optunahub, "load_module", load)
    (code,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    (tmp_path / "readme.py").write_text(code)
    assert runpy.run_path(str(tmp_path / "readme.py"))["study"].best_value < 1e-3


def test_the_example_records_gradients(monkeypatch):
    monkeypatch.setattr(optunahub, "load_module", load)
    example = runpy.run_path(str(PACKAGE / "example.py"))
    study = optuna.create_study(sampler=example["GlocalSampler"](seed=0))
    study.optimize(example["objective"], n_trials=3)
    records = [Record.read(trial) for trial in study.trials]
    assert all(r.steps == r.horizon == example["STEPS"] for r in records)
    assert any(r.gradient for r in records)
