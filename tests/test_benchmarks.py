"""The benchmark scripts and the self-tuning example run at a tiny size and print what they must.

Never their timings: those are the machine's.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("plotly")
EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(script, folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), "--quick", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_lines(out, *lines):
    for line in lines:
        assert re.search(line, out), f"{line} not in\n{out}"


def test_the_self_tuning_example_beats_its_start_and_leaves_its_schedule(tmp_path):
    out = run("self_tuning.py", tmp_path)
    columns = ("held fixed", "tuned itself", "schedule, new seed", "tuned itself, new seed")
    assert_lines(out, " +".join(columns), r"moved +lr 0\.001 -> ", r"schedule +schedule\.json")
    last = [line for line in out.splitlines() if line.startswith("  step ")][-1]
    held, tuned, replayed, again = map(float, last.split()[2:])
    assert tuned < held and replayed < held
    assert abs(replayed - again) < 0.1 * again
    kept = json.loads((tmp_path / "schedule.json").read_text())
    assert kept["columns"] == ["lr", "momentum", "weight_decay"]
    assert (tmp_path / "schedule.csv").read_text().startswith("step,lr,momentum,weight_decay")
    for page in ("self_tuning.html", "schedule.html"):
        assert "Plotly.newPlot" in (tmp_path / page).read_text()


def test_the_quickstart_prints_the_self_tuned_trials_too(tmp_path):
    out = run("quickstart.py", tmp_path, "--tune", "--trials", "3")
    assert_lines(
        out,
        r"digits-60-steps-tuned: found 0 trials",
        r"self-tuned +\d\.\d+ +3 ",
        r"self-tuned, compute +[\d.-]+ +\d ",
        r"best path +lr .* -> .*, momentum .*, weight_decay ",
    )


def test_the_self_tuning_benchmark_prints_figures_beside_requirements(tmp_path):
    out = run("benchmarks/self_tuning.py", tmp_path)
    for task in ("sgd", "adam", "layerwise"):
        assert_lines(
            out,
            rf"{task}: median of one self-tuned run +\d.* <= \d\.\d+ \(GPSampler, 10 trials\)",
            rf"{task}: runs above \.3 +\d.*<= 1%",
            rf"{task}: median test loss +\d",
        )
    assert_lines(
        out,
        r"cost of a step, sgd.*k = 2 .*passes 1\.50x",
        r"adam: lr from 1e-4 to 1, spread .*<= 6%",
        r"30% label noise: tuned at the averages over plain greedy .*<= 0\.92x",
        r"reweighting: rare classes weigh more",
        r"hyper-cleaning, q = 20: noisy groups weigh less",
        r"met: \d+ of \d+ requirements",
    )


def test_the_benchmark_goes_on_from_its_results(tmp_path):
    run("benchmarks/self_tuning.py", tmp_path, "--only", "reweighting")
    file = tmp_path / "self_tuning-quick.json"
    results = json.loads(file.read_text())
    results["reweighting/100"]["tuned"] = 100 + results["reweighting/100"]["uniform"]
    file.write_text(json.dumps(results))
    out = run("benchmarks/self_tuning.py", tmp_path, "--only", "reweighting")
    assert_lines(out, r"uniform weights +\+100\.0 points")


def test_the_paper_benchmark_prints_every_estimator_and_draws(tmp_path):
    out = run("benchmarks/paper.py", tmp_path)
    assert_lines(
        out,
        r"quadratic, T = 60: best held of 36 +\d\.\d+ \(averaged \d",
        r"quadratic, T = 60: best cosine of 36 +\d\.\d+ \(averaged \d",
        r"quadratic, T = 60: greedy, raw weights +\d+\.\d\dx",
        r"quadratic, T = 60: greedy at averages, averaged weights +\d+\.\d\dx",
        r"price of 20 steps, q = 8: tangents, tuning, k = 2 +\d",
    )
    assert "Plotly.newPlot" in (tmp_path / "quadratic.html").read_text()
