"""Examples and benchmarks run in a folder of their own: as a user does, or in this process."""

import contextlib
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import warnings

import torch

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def output_of(script, folder, *arguments, timeout=180):
    """What ``python examples/<script> <arguments>`` prints; it must not fail."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def working_in(folder):
    """``contextlib.chdir``, which Python 3.10 lacks."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def printed_by(script, folder, *arguments):
    """As `output_of`, but in this process: another one would import torch for seconds."""
    path, before, threads = EXAMPLES / script, set(sys.modules), torch.get_num_threads()
    sys.path.insert(0, str(path.parent))
    out = io.StringIO()
    try:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with working_in(folder), contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a run that diverges says so
            module.main(list(arguments))
    finally:
        sys.path.remove(str(path.parent))
        torch.set_num_threads(threads)
        # Benchmarks import each other by names that examples have as well.
        for name in set(sys.modules) - before:
            home = getattr(sys.modules[name], "__file__", None)
            if home and EXAMPLES in pathlib.Path(home).parents:
                del sys.modules[name]
    return out.getvalue()
