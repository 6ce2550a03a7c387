"""The examples run as a user runs them: alone, in an empty directory."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("plotly")
EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(folder, *arguments, script="quickstart.py"):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quickstart_reports_compares_and_draws(tmp_path):
    out = run(tmp_path, "--quick")
    assert "found 0 trials in sqlite:///glocal.db" in out
    for line in (
        r"best value +\d\.\d+ \(trial \d\): lr .*, momentum .*, weight_decay ",
        r"pruned +\d of 6 trials; \d gave a gradient",
        r"tangents +\d+% of the time",
        r"GlocalSampler +\d\.\d+ +6 ",
        r"TPE, same trials +\d\.\d+ +6 ",
        r"TPE, same compute +[\d.-]+ +\d+ ",
        r"optuna-dashboard sqlite:///glocal\.db",
    ):
        assert re.search(line, out), f"{line} not in\n{out}"
    page = (tmp_path / "glocal.html").read_text()
    assert "Plotly.newPlot" in page and len(page) > 1_000_000  # plotly.js is in it: opens offline


def test_the_quickstart_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = quickstart().main  # in this process: a second one would cost another import of torch
    main(["--quick", "--trials", "3"])
    assert "found 0 trials" in capsys.readouterr().out
    main(["--quick", "--trials", "1"])
    again = capsys.readouterr().out
    assert "found 3 trials in sqlite:///glocal.db" in again
    assert re.search(r"GlocalSampler +\d\.\d+ +4 ", again)
    assert re.search(r"TPE, same trials +\d\.\d+ +4 ", again)


def test_importing_the_quickstart_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quickstart()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_distributed_workers_share_a_study(tmp_path):
    sizes = ["--workers", "2", "--trials", "3", "--steps", "20"]
    out = run(tmp_path, *sizes, script="distributed.py")
    found = re.search(r"trials +(\d+) by [12] workers, (\d+) with a record", out)
    assert found and found[1] == found[2] and int(found[1]) >= 3
    assert re.search(r"best value +\d\.\d+ \(trial \d+\)", out)
