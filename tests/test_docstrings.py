"""Every public name says what it takes, gives and raises, and the docstrings' examples run."""

import doctest
import enum
import importlib
import inspect
import pathlib
import re

import optuna
import pytest

import optuna_glocal
from optuna_glocal import visualization


def public():
    for module in (optuna_glocal, visualization):
        for name in module.__all__:
            thing = getattr(module, name)
            yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                for key, member in _members(thing):
                    if not key.startswith("_") and _is_ours(thing, key):
                        yield f"{name}.{key}", member


def _members(cls):
    """Those of its base classes in this package, too: ``GlocalCallback`` has its parts there."""
    for base in cls.__mro__:
        if base.__module__.startswith("optuna_glocal"):
            yield from vars(base).items()


def _is_ours(cls, key):
    """What Optuna's base class documents need not be documented again."""
    member = getattr(cls, key)
    if issubclass(cls, optuna.samplers.BaseSampler) and hasattr(optuna.samplers.BaseSampler, key):
        return False
    return callable(member) or isinstance(member, property)


def signature(thing):
    thing = thing.__func__ if isinstance(thing, (classmethod, staticmethod)) else thing
    return inspect.signature(thing)


NAMES = dict(public())
ROOT = pathlib.Path(optuna_glocal.__file__).parents[1]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "optuna_glocal").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    thing = NAMES[name]
    words = inspect.getdoc(thing) or ""
    first = words.split("\n\n")[0]
    assert first.rstrip().endswith((".", ":", "?", "``")) or len(words.splitlines()) == 1, words
    if isinstance(thing, property) or isinstance(thing, enum.EnumMeta):
        return
    for parameter in _takes(thing):
        assert re.search(rf"\b{parameter}\b", words), f"{name}: {parameter} is not documented"


def _takes(thing):
    try:
        parameters = signature(thing).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.name not in ("self", "cls", "args", "kwargs")]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_raises_is_said(name):
    thing = NAMES[name]
    function = thing.__init__ if inspect.isclass(thing) else thing
    function = function.__func__ if isinstance(function, (classmethod, staticmethod)) else function
    if isinstance(function, property) or not inspect.isfunction(function):
        return
    function = inspect.unwrap(function)
    try:
        source = inspect.getsource(function)
    except OSError:  # made by dataclass
        return
    raised = set(re.findall(r"raise (\w+Error)\b", source))
    words = inspect.getdoc(thing) or ""
    section = words.partition("Raises:")[2]
    assert all(error in section for error in raised), f"{name}: {raised} not under Raises"


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name, capsys):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed, capsys.readouterr().out
