"""The examples run as a user runs them: alone, in an empty directory."""

import importlib
import importlib.util
import re

import numpy as np
import pytest
import torch
from scripts import EXAMPLES, output_of

pytest.importorskip("sklearn")
pytest.importorskip("plotly")


def run(folder, *arguments, script="quickstart.py"):
    return output_of(script, folder, *arguments, timeout=120)


def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quickstart_reports_compares_and_draws(tmp_path):
    out = run(tmp_path, "--quick")
    for line in (
        r"digits-60-steps: 0 of 3 trials in sqlite:///glocal\.db",
        r"runs that tune themselves +\d\.\d+ +\d\.\d+ +\d\.\d+ +\d+\.\d",
        r"held, GPSampler, linear decay +\d\.\d+ +\d\.\d+ +\d\.\d+ +\d+\.\d",
        r"To the loss of the first self-tuned run, the search (needs|does not)",
        r"After 3 trials, the best self-tuned run's loss is \d+\.\d% (lower|higher)",
        r"lr +changes it by [-+]\d",
        r"best run +lr from .* to .* at half time",
        r"optuna-dashboard sqlite:///glocal\.db",
    ):
        assert re.search(line, out), f"{line} not in\n{out}"
    page = (tmp_path / "glocal.html").read_text()
    assert "Plotly.newPlot" in page and len(page) > 1_000_000  # plotly.js is in it: opens offline


def test_the_quickstart_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = quickstart().main  # in this process: a second one would cost another import of torch
    main(["--quick", "--trials", "2"])
    assert "digits-60-steps: 0 of 2 trials" in capsys.readouterr().out
    main(["--quick", "--trials", "3"])
    again = capsys.readouterr().out
    assert "digits-60-steps: 2 of 3 trials" in again
    assert "After 3 trials" in again


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


# The walk: in this process, since each of another would cost another import of torch.


@pytest.fixture
def walk(tmp_path, monkeypatch, capsys):
    """``walk(name)``: what an example prints at its tiny size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def printed(name, *arguments):
        # By its path: benchmarks have files of the same names.
        spec = importlib.util.spec_from_file_location(f"walk_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(["--quick", *arguments])
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    yield printed
    torch.set_num_threads(threads)


def found(pattern, text):
    match = re.search(pattern, text)
    assert match, f"{pattern} not in\n{text}"
    return match


def test_the_own_loop_has_a_gradient_for_what_is_in_the_loss(walk):
    out = walk("own_loop")
    assert int(found(r"gradients +(\d+) given", out)[1]) > 0
    for name in ("lr", "1 - momentum", "penalty", "smoothing"):
        found(rf"\n  {name} +\d", out)


def test_one_run_needs_no_study(walk):
    rows = re.findall(r"\n +(\d\S+) +(\d\S+) +(\d\S+) +(\d\S+)", walk("one_run"))
    held, tuned = ([float(row[i]) for row in rows] for i in (1, 2))
    assert len(rows) == 3
    assert max(tuned) < held[0]  # the run that is held at a rate far too low


def test_the_first_figure_of_the_readme_is_drawn(walk, tmp_path):
    pytest.importorskip("matplotlib")
    out = walk("one_run_figure", "--out", str(tmp_path / "one_run.png"))
    assert len(re.findall(r"tunes itself, from \S+ +\d", out)) == 4
    assert (tmp_path / "one_run.png").stat().st_size > 10_000


def test_every_layer_has_its_own_gradient(walk):
    out = walk("layerwise")
    medians = {found(rf"\n  lr of layer {i} +(\S+) ", out)[1] for i in range(3)}
    assert len(medians) == 3


def test_pruners_stop_the_same_trials_with_the_callback_and_without(walk):
    out = walk("pruners")
    told = re.findall(r"with(?:out)? the callback: stopped trials (.*)", out)
    assert len(told) == 2 and told[0] == told[1] != "none"
    rows = re.findall(r"\n(none|median|halving|hyperband) +(\d+) +(\d+) +\d\.\d+", out)
    assert [name for name, *_ in rows] == ["none", "median", "halving", "hyperband"]
    assert all(int(taught) <= int(pruned) for _, pruned, taught in rows)
    assert rows[0][1:] == ("0", "0") and any(int(taught) for *_, taught in rows)


def test_gradients_from_elsewhere_are_those_of_the_formula(walk):
    out = walk("given_gradients")
    found(r"gradients +6 given, 0 withheld", out)
    formula = importlib.import_module("given_gradients")
    data, at, eps = formula.load(60), np.array([0.3, 1e-2]), 1e-5
    gradient = formula.value_and_gradient(*at, *data)[1]
    for i, name in enumerate(("gamma", "ridge")):
        step = np.where(np.arange(2) == i, eps * at, 0.0)
        up, down = (formula.value_and_gradient(*(at + s), *data)[0] for s in (step, -step))
        assert gradient[name] == pytest.approx((up - down) / (2 * eps * at[i]), rel=1e-5)


def test_one_run_tunes_itself_and_its_schedule_is_exported(walk, tmp_path):
    out = walk("self_tuning")
    tuned, fixed = (
        float(found(rf"step 60 +{column}", out)[1])
        for column in (r"[\d.]+ +([\d.]+)", r"([\d.]+)")
    )
    assert tuned < fixed
    assert {f.name for f in tmp_path.iterdir()} >= {
        "schedule.json", "schedule.csv", "schedule.html", "self_tuning.html",
    }  # fmt: skip


def test_a_finished_study_is_read_from_its_storage(walk, tmp_path):
    out = walk("reading")
    tuned, held, observed = (f"digits-60-steps{end}" for end in ("", "-held", "-observed"))
    for name in (tuned, held, observed):
        found(rf"study {name} \(minimize\)\n  trials +\d+: ", out)
    found(r"The best trial left no record", out)
    drawn = {"proposals", "slice", "contour", "importances", "trust", "trajectory", "eigenvalues"}
    for name, expected in ((observed, drawn), (tuned, drawn | {"schedule"})):
        folder = tmp_path / "figures" / name
        assert {f.stem for f in folder.glob("*.html")} == expected
        assert (folder / "plotly.min.js").exists()
    assert not (tmp_path / "figures" / held).exists()
