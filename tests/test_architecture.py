"""The rules of the house that a machine can check."""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parent.parent / "optuna_glocal"
MAY_IMPORT_OPTUNA = {
    "callback", "record", "space", "sampler", "schedule", "summary", "visualization", "_optuna",
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_optuna_appears_only_at_the_doors_and_the_seam():
    for path in PACKAGE.rglob("*.py"):
        touched = {name for name in imports(path) if name.split(".")[0] == "optuna"}
        home = path.parent.name if path.parent != PACKAGE else path.stem
        assert not touched or home in MAY_IMPORT_OPTUNA, (path.name, touched)
        private = {name for name in touched if "._" in name}
        assert not private or path.stem == "_optuna", (path.name, private)


def test_the_doors_do_not_know_each_other():
    inside = {"callback", "observer", "tuner", "tangent", "greedy", "schedule"}
    across = {"sampler", "space", "gp", "kernel", "acquisition"}
    for path in PACKAGE.rglob("*.py"):
        names = {name.split(".")[-1] for name in imports(path) if "optuna_glocal." in name}
        if path.stem in inside:
            assert not names & across, path.name
        if path.stem in across:
            assert not names & inside, path.name


def test_the_sampler_alone_runs_without_torch_loaded():
    code = "import sys, optuna_glocal; optuna_glocal.GlocalSampler; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_public_names():
    import optuna_glocal

    for name in optuna_glocal.__all__:
        assert getattr(optuna_glocal, name).__doc__, name
