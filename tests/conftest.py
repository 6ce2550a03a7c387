"""Every test starts from the same seeds and a small heap; shared servers."""

import contextlib
import gc
import pathlib
import random

import hypothesis  # noqa: F401, which counts references to random states when it is imported
import numpy as np
import optuna
import pytest
import servers

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")


HERE = pathlib.Path(__file__).parent
# Frameworks take seconds to import and minutes to test; `test_distributed` starts two processes.
WHOLE = {"system", "integrations"}
PROCESSES = "test_distributed.py"


def is_system(path):
    """Whole studies, servers, browsers, frameworks and processes make up the slow lane."""
    return path.name == PROCESSES or any(HERE / name in path.parents for name in WHOLE)


def pytest_ignore_collect(collection_path, config):
    """The fast lane does not import what it would deselect."""
    is_fast = config.option.markexpr == "not system"
    return True if is_fast and is_system(collection_path) else None


def pytest_collection_modifyitems(items):
    for item in items:
        if is_system(item.path):
            item.add_marker("system")


@pytest.fixture(autouse=True)
def _seeded():
    import torch  # not in the process that only hands out tests

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """The garbage collector lists nothing that is alive before a file's first test.

    A new callback looks through all objects for the modules and schedulers of its optimizer. With
    thousands of collected tests and all frameworks in one process, that would take most of the
    time. What the tests themselves make is found as ever.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def double_precision():
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def thawed():
    """For tests of what the garbage collector lists of the whole process.

    A number counts as a literal only where the function that holds it is listed.
    """
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(scope="session")
def server():
    """``server(kind)``: a running server, one of each kind for all tests that do not hurt it."""
    running = {}
    with contextlib.ExitStack() as stack:

        def started(kind):
            servers.require(servers.missing(kind))
            if kind not in running:
                behind = started("postgresql").url if kind == "grpc" else None
                new = servers.Server(kind, behind)
                stack.callback(new.close)
                running[kind] = new.start()
            return running[kind]

        yield started


def pytest_terminal_summary(terminalreporter):
    """Says in one line what this machine lacked."""
    lacking = sorted(filter(None, map(servers.missing, servers.NEEDS)))
    skipped = len(terminalreporter.stats.get("skipped", []))
    if skipped:
        reasons = "; ".join(lacking) or "no storage server was missing"
        terminalreporter.write_line(f"{skipped} tests skipped. {reasons}")
