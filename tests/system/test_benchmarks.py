"""The benchmark scripts and the self-tuning example run at a tiny size and print what they must.

Never their timings: those are the machine's.
"""

import json
import re

import numpy as np
import pytest
from scripts import EXAMPLES, printed_by

pytest.importorskip("sklearn")
pytest.importorskip("plotly")


def run(script, folder, *arguments):
    return printed_by(script, folder, "--quick", *arguments)


def assert_lines(out, *lines):
    for line in lines:
        assert re.search(line, out), f"{line} not in\n{out}"


def test_vectors_are_compared_with_search_and_with_exact_optima(tmp_path):
    parts = ("features", "ridge", "cleaning")
    only = [word for part in parts for word in ("--only", part)]
    out = run("benchmarks/vectors.py", tmp_path, *only)
    assert_lines(
        out, r"ridge, 54 strengths, above the optimum: median +[\d.]+%", r"gained of the gap",
        r"useless columns above every useful one +[\d.]+%",
    )  # fmt: skip


def test_a_schedule_is_replayed_on_all_data(tmp_path):
    out = run("benchmarks/all_data.py", tmp_path)
    assert_lines(out, r"self-tuned +\d", r"replayed on all data +\d", r"OneCycle on all data +\d")


def test_ways_to_weight_a_physics_loss_are_compared(tmp_path):
    out = run("benchmarks/pinn.py", tmp_path)
    for name in ("fixed", "norms", "relobralo", "terms", "points", "tpe"):
        assert_lines(out, rf"{name}: median relative error +\d\.\d+e")


def test_the_self_tuning_example_beats_its_start_and_leaves_its_schedule(tmp_path):
    out = run("self_tuning.py", tmp_path)
    columns = ("held fixed", "tuned itself", "schedule, new seed", "tuned itself, new seed")
    assert_lines(out, " +".join(columns), r"moved +lr \S+ -> ", r"schedule +schedule\.json")
    last = [line for line in out.splitlines() if line.startswith("  step ")][-1]
    held, tuned, replayed, again = map(float, last.split()[2:])
    assert tuned < held and replayed < held
    assert replayed < 1.1 * again  # following a schedule costs little beside finding one's own
    kept = json.loads((tmp_path / "schedule.json").read_text())
    assert kept["columns"] == ["lr"]
    assert (tmp_path / "schedule.csv").read_text().startswith("step,lr\n")
    for page in ("self_tuning.html", "schedule.html"):
        assert "Plotly.newPlot" in (tmp_path / page).read_text()


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
        r"30% label noise: with averages over without .*<= 0\.92x",
        r"reweighting: rare classes weigh more",
        r"hyper-cleaning, q = 20: noisy groups weigh less",
        r"met: \d+ of \d+ requirements",
    )


def test_an_operator_of_dilation_that_is_shrunk_for_ever_is_the_power_law(tmp_path):
    out = run("benchmarks/dilation.py", tmp_path, "--only", "known")
    for case in ("exponentials", "noisy quadratic", "convex softmax"):
        far = re.search(rf"{case}: from the power law with ρ infinite (\S+)", out)
        off = re.search(rf"{case}: (\S+) ρ 0.01", out)
        assert float(far[1]) < 1e-8 < float(off[1])


def test_implicit_gradients_are_compared_with_differences(tmp_path):
    out = run("benchmarks/implicit.py", tmp_path)
    assert_lines(
        out,
        r"softmax-sgd 0: weight_decay .*cosine \+\d",
        r"smooth: 1 of 1 runs; given in 1, 1 with a cosine of 0\.95 or more",
        r"arithmetic: \d+\.\d % of a run",
    )


@pytest.mark.parametrize("option", ["implicit", "timescale"])
def test_an_option_for_what_is_held_is_compared_with_its_absence(option, capsys, monkeypatch):
    """Studies, and for the timescale single runs from two starts."""
    monkeypatch.syspath_prepend(EXAMPLES.parent)
    from examples.benchmarks import held

    starts = ["--factors", "0.5", "1"] if option == "timescale" else []
    held.main(["--quick", "--option", option, *starts])
    out = capsys.readouterr().out
    if starts:
        assert_lines(out, r"runs from 0\.5 times the strong rate \d", r"runs from 1 times .* \d")
    else:
        assert_lines(out, r"studies \d\.\d+ \[.*\]; a trial costs \+0\.\d+ plain runs")


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
    for task in ("sgd mlp", "sgd cnn", "adam mlp", "adam cnn"):
        for name in (
            "fixed",
            "greedy",
            "local",
            "glocal",
            "glocal, unit",
            "glocal, all",
            "global",
        ):
            losses = r"\d\.\d+, \d\.\d+x \[\d.*\]"
            row = rf"validation {losses}; test {losses}; above \.3 +\d+%; \d+\.\d runs"
            assert_lines(out, rf"{task}: {name}, over greedy +{row}")
    assert_lines(
        out,
        r"does glocal beat greedy\? +Glocal (does not beat|beats) greedy: of 20 intervals",
        r"global: plain steps by update, T = 20, 40 .*T\^-?\d\.\d\d +O\(T\^1\)",
        r"local: copies of θ, q = 1, 2 .*q\^\d\.\d\d +O\(q\^1\)",
        r"sgd, 1 new seeds: the schedule replayed, over self-tuned +\d\.\d+x .*<= 1\.03x",
        r"adam, 1 new seeds: best_params held, over self-tuned +\d\.\d+x",
        r"quadratic, T = 60: best held of 36 +\d\.\d+ \(averaged \d",
        r"quadratic, T = 60: best cosine of 36 +\d\.\d+ \(averaged \d",
        r"quadratic, T = 60: greedy, raw weights +\d+\.\d\dx",
        r"quadratic, T = 60: greedy, averaged weights +\d+\.\d\dx",
    )
    for part in ("estimators", "complexity", "replay", "quadratic"):
        assert "Plotly.newPlot" in (tmp_path / f"{part}.html").read_text()


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))


def test_problems_have_exact_gradients_and_their_least_value_is_zero(benchmarks):
    import problems

    rng = np.random.default_rng(0)
    for problem in problems.FORMULAS:
        u = rng.random(problem.D)
        _, gradient = problem.evaluate(u, 0)
        step, axes = 1e-6, np.eye(problem.D)
        up, down = ([problem.evaluate(u + s * e, 0)[0] for e in axes] for s in (step, -step))
        slow = (np.array(up) - down) / (2 * step)
        np.testing.assert_allclose(gradient, slow, atol=1e-5 * np.abs(slow).max())
        assert min(problem.evaluate(v, 0)[0] for v in rng.random((200, problem.D))) > 0
    shifted = problems._shift
    assert problems.ackley(shifted(5))[0] == pytest.approx(0, abs=1e-6)
    assert problems.levy(shifted(8))[0] == pytest.approx(0, abs=1e-6)
    assert problems.rosenbrock(np.full(4, 3.048 / 4.096))[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "layerwise"])
def test_the_unrolled_training_is_torchs_and_its_gradient_exact(benchmarks, name):
    import tasks
    import unrolled

    task = tasks.TASKS[name](steps=25)
    h, seed = task.centre(), 3
    value, gradient = unrolled.evaluate(name, seed, h, steps=25)
    assert value == pytest.approx(tasks.train(task, seed, h)[2], rel=1e-5)

    def loss(key, factor):
        return unrolled.evaluate(name, seed, {**h, key: h[key] * factor}, False, 25)[0]

    slow = [(loss(k, 1 + 1e-4) - loss(k, 1 - 1e-4)) / (2e-4 * h[k]) for k in h]
    np.testing.assert_allclose(
        gradient * list(h.values()), slow * np.array(list(h.values())), rtol=1e-4, atol=1e-7
    )


def test_the_samplers_benchmark_prints_figures_beside_requirements(tmp_path):
    out = run("benchmarks/samplers.py", tmp_path)
    assert_lines(
        out,
        r"Hartmann 6: CMA-ES, medians at 5 trials +\d",
        r"Hartmann 6: trials to GPSampler's median \(VAL .*, Adam .*\) .*<= 12",
        r"digits sgd: wins against VAL at the end +\d of 1 ",
        r"digits sgd, all signs flipped: gap to GPSampler over Random's .*<= 5%",
        r"all, no gradients: over GPSampler +\d.*<= 1.00x and 1.02x",
        r"met: \d+ of \d+ requirements",
    )
    file = tmp_path / "samplers-quick.json"
    results = json.loads(file.read_text())
    assert {len(curve) for curve in results.values()} == {5}
    results["GPSampler/Hartmann 6/100"] = [9.0] * 5
    file.write_text(json.dumps(results))
    out = run("benchmarks/samplers.py", tmp_path, "--only", "functions")
    assert_lines(out, r"Hartmann 6: GPSampler, medians at 5 trials +9\n")


def test_descents_in_many_dimensions_are_compared_with_lbfgs(tmp_path):
    out = run("benchmarks/many_dimensions.py", tmp_path)
    for name in ("separable", "ellipsoid", "rosenbrock", "logistic"):
        assert_lines(out, rf"{name}, 20( +\d\S*){{8}}")
    out = run("benchmarks/many_dimensions.py", tmp_path, "--mixed", "--functions", "ellipsoid")
    ours = float(re.search(r"ellipsoid, 20 +(\S+)", out)[1])
    assert ours < 1


def test_suggestions_are_timed_beside_gpsamplers(tmp_path):
    out = run("benchmarks/suggest_time.py", tmp_path)
    assert_lines(out, r"N = 12: ours over GPSampler +\d", r"N = 12: peak of ours +\d+ MB")
    assert_lines(out, r"D = 20, N = 4: ours, opposite gradients +\d")


def test_the_forecast_benchmark_trains_what_is_missing_and_scores_it(tmp_path):
    out = run("benchmarks/trajectories.py", tmp_path, "--only", "report")
    assert_lines(out, r"12 runs: .*trajectories-quick\.json")
    kept = (tmp_path / "trajectories-quick.json").read_text()
    out = run("benchmarks/forecasts.py", tmp_path, "--only", "report", "--only", "known")
    assert_lines(
        out,
        r"report, τ = 0\.2 T, gate: share kept +\d.* of 12 +>= \.6",
        r"report, τ = 0\.2 T, error of given, median +\S+ \[\S+, \S+\] of \d+ +<= \.80",
        r"report, τ = 0\.2 T, 80 % intervals of h cover .*\.7-\.9",
        r"report, τ = 0\.4 T, loss, median error +\d.*<= 0\.15",
        r"sums of exponentials, 2 % noise, τ = \.4 T .*<= \.03 +ok",
        r"noisy quadratic, τ = 20: sign .*that of h_T +ok",
        r"convex softmax, τ = 50: error .*<= \.03 +ok",
    )
    assert (tmp_path / "trajectories-quick.json").read_text() == kept  # nothing trained twice
    assert "Plotly.newPlot" in (tmp_path / "calibration-report.html").read_text()


def test_intervals_redraw_seeds_and_the_caption_counts_them(benchmarks):
    from estimators import caption_of, interval

    rng = np.random.default_rng(0)
    by_seed = np.exp(rng.normal(size=(10, 1))) * np.ones((1, 5))  # starts tell nothing new
    median, low, high = interval(by_seed)
    assert median == np.median(by_seed) and by_seed.min() <= low < median < high <= by_seed.max()
    assert interval(np.ones((10, 5))) == (1.0, 1.0, 1.0)
    verdicts = {
        ("a", "glocal"): -1,
        ("a", "glocal, unit"): 1,
        ("b", "glocal"): 1,
        ("b", "local"): -1,
    }
    assert caption_of(verdicts).startswith("Glocal does not beat greedy: of 3 intervals")
    assert "2 lie above 1, 1 below, 0 across" in caption_of(verdicts)


def test_the_benchmark_of_tangents_prints_costs_and_cosines(tmp_path):
    out = run("benchmarks/tangent_cost.py", tmp_path)
    assert_lines(
        out,
        r"mlp, q = 3: step, exact and cheap +\d\S+x \d\S+x, exact in passes 4\.57x, memory \+\d",
        r"mlp, q = 1: step, exact and cheap +\d.*cheap <= 1\.35x",
        r"10k, adamw: detectors' share of a step +-?\d\S+% of \d\S+x the plain step +<= 3\.0%",
        r"tanh, sgd: cheap +cos \d\.\d+ .*>= 0\.97 +ok",
        r"tanh, adam: sub-batch of 16 +cos \d\.\d+ .*products 0\.25 ",
        r"tanh, adam: first order, times \.99 +cos \d\.\d+ .*products 0\.00 ",
        r"digits MLP, q = 3: whole trial, cheap +\d+\.\d\dx +<= 1\.25x",
        r"digits MLP: steps after the window, exact +[+-]\d",
    )


def test_the_equal_compute_benchmark_compares_every_arm(tmp_path):
    out = run("benchmarks/equal_compute.py", tmp_path)
    ratio = r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]  [01]/1 +test \d"
    assert_lines(
        out,
        r"adam-20: best validation loss, medians over 1 seeds",
        r"sgd-noise-20: best validation loss",
        r"GlocalSampler, tune=True( +\d\.\d+| +inf){4} +\d trials",
        r"ours over the peer's at 30 plain trials by passes",
        rf"TPE \+ Hyperband +{ratio}",
        rf"cosine control, averaged +{ratio}",
        r"CPU to GPSampler@30: median ",
        r"figure: .*equal_compute-quick\.html",
    )
    assert "cosine control" in (tmp_path / "equal_compute-quick.html").read_text()


def test_a_budget_counts_what_was_done_by_then(benchmarks):
    import equal_compute as e

    rows = [[1.0, 2.0, 0.5, 0.6], [2.0, 4.0, 0.3, 0.4], [3.1, 6.0, 0.4, 0.2]]
    assert e.at(rows, 0.5, 0)[0] == np.inf
    assert e.at(rows, 1, 0) == (0.5, 0.6)
    assert e.at(rows, 3, 0) == e.at(rows, 30, 0) == (0.3, 0.4)
    assert e.at(rows, 3.9, 1) == (0.3, 0.4)  # just beyond the budget
    assert e.reach(rows, 0.3, 1) == 4.0 and e.reach(rows, 0.1, 1) == np.inf
    worse = [[row[0], row[1], 2 * row[2], row[3]] for row in rows]
    ours, peers = {1: rows, 2: rows, 3: rows, 4: worse}, {3: worse, 1: worse, 2: worse, 9: rows}
    (found,) = e.compare({e.OURS: ours, "peer": peers}, 3, 0)
    assert found[:6] == ("peer", 0.5, 0.5, 0.5, 3, 3)
    late = [[40.0, 40.0, 0.1, 0.1]]
    (found,) = e.compare({e.OURS: {1: late}, "peer": {1: rows}}, 3, 0)
    assert found[1] == np.inf and found[4] == 0


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_trials_trained_at_once_are_those_trained_alone(benchmarks, name):
    import pruners
    import tasks
    import torch

    task = tasks.TASKS[name](steps=30)
    hs = [task.random_start(torch.Generator().manual_seed(i)) for i in range(3)]
    curves, tests = pruners.train_all(task, [3, 4, 5], hs)
    for seed, h, curve, test in zip((3, 4, 5), hs, curves, tests, strict=True):
        _, _, value, tested = tasks.train(task, seed, h)
        assert (curve[-1], test) == pytest.approx((value, tested), rel=1e-4)


def test_the_benchmark_of_pruners_compares_them_at_equal_compute(tmp_path):
    out = run("benchmarks/pruners.py", tmp_path)
    assert_lines(
        out,
        r"sgd, T = 30, 2 seeds",
        r"median +\d\.\d{4} .* stopped \(at .* wrongly \d+",
        r"forecast, 1\.0 sd over hyperband, with CPU:  \d\.\d{3} \[",
    )
