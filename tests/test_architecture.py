"""The rules of the house that a machine can check: which folder may import which."""

import ast
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "optuna_glocal"

# What each room may import of the others: rooms, or single modules of them. Modules at the top
# (`_arrays`, `_checks`, `_log`) are open to all, and `__init__` may import every room.
ARROWS = {
    # Hugging Face's schedulers with a floor have to be marked before the training begins.
    "integrations": {"training", "hypergradient.schedulers.huggingface"},
    "visualization": {"analysis", "sampler", "storage", "forecasting"},
    "training": {"tuning", "storage", "forecasting", "hypergradient"},
    "analysis": {"sampler.space", "storage"},
    "tuning": {"storage", "forecasting", "hypergradient"},
    "sampler": {"storage"},
    "storage": {"forecasting.trajectory"},
    "forecasting": set(),
    "hypergradient": set(),
}
OPTUNA = {
    "training", "tuning", "storage", "sampler", "analysis", "visualization", "integrations", "",
}  # fmt: skip
TORCH = {"training", "tuning", "hypergradient", "integrations"}
FILES = sorted(PACKAGE.rglob("*.py"))
# Modules without a test file of their name in the folder of their own, and where they are tested.
TESTED_ELSEWHERE = {
    "_arrays.py": "names of types, which mypy checks",
}


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path):
    """Every imported module, and every name imported from one, as dotted paths."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_rooms_are_these():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ARROWS)
    entries = [p for p in PACKAGE.iterdir() if p.name not in {"__pycache__", "py.typed"}]
    assert len(entries) <= 13, sorted(p.name for p in entries)


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_only_what_it_may(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            first, *rest = name.split(".")
            other = rest[0] if first == "optuna_glocal" and rest else ""
            if other in ARROWS and other != room:
                inside = name.removeprefix("optuna_glocal.") + "."
                assert any(inside.startswith(f"{to}.") for to in ARROWS[room]), (str(path), name)


def test_no_room_imports_itself_in_a_circle():
    below = {room: {to.split(".")[0] for to in others} for room, others in ARROWS.items()}
    while free := [room for room, others in below.items() if not others]:
        for room in free:
            del below[room]
        for others in below.values():
            others.difference_update(free)
    assert not below


def test_optuna_and_torch_appear_only_in_their_rooms():
    for path in FILES:
        heads = {name.split(".")[0] for name in imports(path)}
        assert "optuna" not in heads or room_of(path) in OPTUNA, path
        assert "torch" not in heads or room_of(path) in TORCH, path


def test_private_optuna_is_touched_in_one_file_and_its_gp_nowhere():
    for path in FILES:
        private = {name for name in imports(path) if name.startswith("optuna._")}
        assert not private or path.stem == "_optuna", (path, private)
        assert not any(name.startswith("optuna._gp") for name in private)


def test_all_but_the_training_loop_does_without_torch():
    code = (
        "import sys, optuna_glocal as o;"
        "o.GlocalSampler(), o.summary, o.Record, o.Observe(), o.Tune();"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_every_package_has_a_page_of_the_manual():
    for path in PACKAGE.rglob("__init__.py"):
        page = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(page) > 200, path


def test_the_tests_of_a_module_are_found_by_its_name():
    """``tests/<room>/test_<module>.py``; an underscore in front does not count."""
    without = set()
    for path in FILES:
        inside = path.relative_to(PACKAGE)
        if path.name != "__init__.py":
            name = f"test_{path.stem.lstrip('_')}.py"
            if not (TESTS / inside.parent / name).is_file():
                without.add(inside.as_posix())
    assert without == set(TESTED_ELSEWHERE)


def test_public_names():
    import optuna_glocal

    for name in optuna_glocal.__all__:
        assert getattr(optuna_glocal, name).__doc__, name
