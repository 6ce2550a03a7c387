"""The benchmark suite at a tiny size: its tasks can be trained, its figures are what they say."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from scripts import EXAMPLES, output_of

pytest.importorskip("sklearn")
BENCHMARKS = EXAMPLES / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    from suite import (
        arms,
        comparison,
        figure,
        headline,
        optimizers,
        ours,
        readme,
        report,
        schedules,
        training,
    )
    from suite.averaging import Averages
    from suite.command import tasks_of
    from suite.peers import population, search, single
    from suite.results import Results
    from suite.store import Store
    from suite.task import Range
    from suite.tasks import TASKS, digits, finetuning, pinn, streaming
finally:
    sys.path.remove(str(BENCHMARKS))


def short(name, steps=18):
    return dataclasses.replace(TASKS[name], horizon=steps)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_can_be_trained_validated_and_tested(name, monkeypatch):
    monkeypatch.setattr(finetuning, "PRE_TRAINING", 3)
    task = TASKS[name]
    assert set(task.strong) == set(task.space)
    for key, r in task.space.items():
        assert r.low < task.strong[key] < r.high and r.low < task.centre[key] < r.high
    try:
        problem = task.make(task.strong, 0)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs the package {error.name}")
    before = problem.state()
    optimizer = optimizers.OPTIMIZERS[task.optimizer](problem.groups)
    for _ in range(2):
        loss = training.step(problem, optimizer, task.strong)
        assert math.isfinite(loss.item())
    assert any(not torch.equal(v, before[k]) for k, v in problem.state().items())
    assert all(group["lr"] > 0 for group in problem.groups)
    assert sum(p.numel() for p in problem.parameters()) == sum(
        p.numel() for p in problem.model.parameters()
    )
    assert problem.validation_loss().requires_grad
    (valid, error), (test, _) = problem.evaluate("validation"), problem.evaluate("test")
    assert math.isfinite(valid) and math.isfinite(test) and valid != test
    assert error is None or 0 <= error <= 1
    assert problem.model.training
    again = task.make(task.strong, 0)
    assert all(torch.equal(v, before[k]) for k, v in again.state().items())


def test_there_are_report_tasks_and_long_ones():
    assert sum(task.is_report for task in TASKS.values()) >= 3
    assert sum(task.is_long for task in TASKS.values()) == 2
    halves = tasks_of(["dev"]), tasks_of(["report"])
    assert not set(halves[0]) & set(halves[1])
    assert set(halves[0]) | set(halves[1]) == set(TASKS)


def test_starts_scale_the_learning_rates_only_and_stay_in_the_box():
    task = TASKS["digits-layerwise"]
    low = task.start(1 / 50)
    assert low["momentum"] == task.centre["momentum"]
    assert low["lr_1"] == max(task.centre["lr_1"] / 50, task.space["lr_1"].low)
    assert Range(0.5, 0.9, log=False).middle == pytest.approx(0.7)
    assert Range(1e-4, 1.0).middle == pytest.approx(1e-2)


def test_the_streaming_loss_is_the_excess_over_the_teachers():
    task = TASKS["stream-sgd-300"]
    problem = task.make(task.strong, 3)
    teacher, _ = streaming.teacher_of(3)
    problem.model.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        problem.model[2].weight.mul_(2.5)
        problem.model[2].bias.mul_(2.5)
    loss, wrong = problem.evaluate("validation")
    assert abs(loss) < 1e-5 and wrong == 0


def test_noise_redraws_three_labels_in_ten_and_only_in_training():
    clean, noisy = digits.images(), digits.noisy(digits.images(), 0.3, 1)
    changed = (clean.train[1] != noisy.train[1]).double().mean().item()
    assert 0.2 < changed < 0.34  # a tenth of the drawn labels are the old ones
    assert torch.equal(clean.validation[1], noisy.validation[1])


def test_the_equations_solutions_have_no_residual():
    exact = pinn.Helmholtz.exact
    points = pinn.Helmholtz.points(64, torch.Generator().manual_seed(0))
    residual, sides = pinn.Helmholtz.terms(lambda p: exact(p)[:, None], points)
    assert residual < 1e-8 and sides < 1e-8
    grid, u = (v.double().numpy() for v in pinn.Burgers.solution())
    t, x = grid[:, 0].reshape(20, 50)[:, 0], grid[:, 1].reshape(20, 50)[0]
    u = u.reshape(20, 50)
    slope, (u_t, u_x) = np.gradient(np.gradient(u, x, axis=1), x, axis=1), np.gradient(u, t, x)
    smooth = (np.abs(slope) < 5)[2:-2, 2:-2]
    left = (u_t + u * u_x - pinn.VISCOSITY * slope)[2:-2, 2:-2][smooth]
    assert np.median(np.abs(left)) < 0.01
    assert np.sign(u[0, 10]) == 1 and np.allclose(u, -u[:, ::-1], atol=1e-4)


def test_schedules_end_at_zero_and_warm_up():
    for name, factor in schedules.SCHEDULES.items():
        values = [factor(t, 100) for t in range(101)]
        assert values[100] == pytest.approx(1 if name == "constant" else 0, abs=1e-9)
        assert max(values) == pytest.approx(1)
    assert schedules.cosine(0, 100) == pytest.approx(0.2)
    assert schedules.linear(60, 100) == 1 and schedules.linear(80, 100) == pytest.approx(0.5)


def test_averages_forget_and_put_the_weights_back():
    p = torch.nn.Parameter(torch.zeros(2))
    averages, expected = Averages([p], ks=(12.0,)), torch.zeros(2)
    for t in range(1, 40):
        p.data.fill_(t)
        averages.update()
        expected += 12 / (t + 12) * (p.data - expected)
    with averages.swapped(averages.means[0]):
        assert torch.allclose(p, expected)
    assert torch.equal(p.data, torch.full((2,), 39.0))


def test_a_plain_run_is_the_same_with_and_without_other_peers(tmp_path):
    task, store = short("digits-sgd"), Store(tmp_path / "r.jsonl")
    last, averaged = (single.SINGLES[n] for n in ("strong, linear", "strong, linear, averages"))
    a, b = (single.run(store, task, 0, peer)[0] for peer in (last, averaged))
    assert len(store.results) == 1  # one training serves both
    assert b[0] > a[0] and b[1] > a[1] and b[2] <= a[2]
    found = training.plain(task, 0, task.strong, "linear")
    assert found["last"] == a[2:] and found["averaged"] == b[2:]
    shorter = training.plain(task, 0, task.strong, "linear", rungs=1)
    assert shorter["curve"] == found["curve"][:1]
    assert shorter["passes"] == pytest.approx(2 + 600 / 64 / 3)
    broken = training.plain(short("regression"), 0, {**TASKS["regression"].strong, "lr": 1e6})
    assert broken["last"][:2] == [math.inf, math.inf]


def test_other_optimizers_take_the_groups():
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.01)]
    groups[1]["weight_decay"] = 0.0
    new = optimizers.regrouped(groups, {"lr": 1e-3, "weight_decay": 0.1}, "adamw")
    assert [g["lr"] for g in new] == pytest.approx([1e-3, 1e-4])
    assert [g["weight_decay"] for g in new] == [0.1, 0.0]
    one = optimizers.regrouped(groups, {"lr": 1.0}, "prodigy")
    assert [g["lr"] for g in one] == [1.0, 1.0]


@pytest.mark.parametrize("name", [n for n, p in single.SINGLES.items() if p.optimizer])
def test_every_optimizer_trains(name, tmp_path):
    peer = single.SINGLES[name]
    if peer.package:
        pytest.importorskip(peer.package)
    task = short("digits-layerwise")
    (row,) = single.run(Store(tmp_path / "r.jsonl"), task, 0, peer)
    assert all(map(math.isfinite, row))


def test_searches_share_trials_and_hyperband_pays_less(tmp_path):
    task, store = short("digits-sgd"), Store(tmp_path / "r.jsonl")
    rows = {}
    for name in ("GPSampler, cosine", "TPE, cosine", "TPE + Hyperband, cosine"):
        rows[name] = search.SEARCHES[name].rows(store, task, 0, 6)
    gp, tpe, stopped = rows.values()
    assert gp[0][2] == tpe[0][2] == stopped[0][2]  # the centre comes first
    trained = sum(key.startswith("plain") for key in store.results)
    assert trained < len(gp) + len(tpe) + len(stopped)
    look = 600 / 64 / 3  # Hyperband's first trial, the centre, goes on to the end
    assert stopped[0][0] == pytest.approx(gp[0][0] + 2 * look)
    kept = Store(tmp_path / "r.jsonl", is_frozen=True)
    assert search.SEARCHES["TPE, cosine"].rows(kept, task, 0, 6) == tpe
    with pytest.raises(KeyError):
        search.SEARCHES["TPE, linear"].rows(kept, task, 0, 6)


def test_results_outlive_a_line_that_was_cut_off(tmp_path):
    store = Store(tmp_path / "new" / "r.jsonl")
    assert store.get(("a", 1, {"lr": 0.1}), lambda: [math.inf]) == [math.inf]
    with store.path.open("a") as file:
        file.write('["b", [1.')
    again = Store(store.path)
    assert list(again.results) == ["a | 1 | lr=0.1"]
    assert again.get("b", lambda: 2) == 2 and len(Store(store.path).results) == 2


def test_a_study_that_went_on_longer_serves_shorter_budgets(tmp_path):
    store, runs = Store(tmp_path / "r.jsonl"), []

    def rows(budget):
        runs.append(budget)
        return [[float(n), 0.0, 1.0, 1.0, None] for n in range(1, budget + 1)]

    assert len(store.longest(("a",), 2, rows, 2)) == 2
    assert len(store.longest(("a",), 4, rows, 4)) == 4
    assert len(store.longest(("a",), 3, rows, 3)) == 4 and runs == [2, 4]
    kept = Store(store.path, is_frozen=True)
    assert len(kept.longest(("a",), 30, rows, 30)) == 4
    with pytest.raises(KeyError):
        kept.longest(("b",), 1, rows, 1)


def test_a_population_copies_the_better_member(tmp_path):
    task = short("digits-noise-sgd")
    ((passes, _, value, test, error),) = population.evolve(task, 0, 4)
    assert passes == pytest.approx(4 * (18 + 10 * 600 / 64 / 3))
    assert all(map(math.isfinite, (value, test, error)))
    good, bad = (population.Member(task, 0, task.strong, i) for i in range(2))
    good.train(3)
    h = task.strong | {"lr": 0.05}
    bad.become(good, h)
    assert bad.optimizer.param_groups[0]["lr"] == 0.05 and bad.h == h
    new, old = bad.problem.state(), good.problem.state()
    assert all(torch.equal(v, new[k]) for k, v in old.items())
    assert population.Population(4).rows(Store(tmp_path / "r.jsonl"), task, 0, 3) == []


def test_our_trials_move_their_hyperparameters_and_count_their_passes():
    task = short("digits-layerwise")
    found = ours.run(task, 0, task.centre, {"tune": True})
    assert found["ended"]["lr_1"] != pytest.approx(task.centre["lr_1"])
    assert found["passes"] > task.horizon + 600 / 64 / 3
    assert found["averaged"][0] <= found["last"][0]
    watched = ours.run(task, 0, task.centre, {"tune": False})
    assert watched["ended"] == pytest.approx(task.centre)
    assert watched["passes"] > task.horizon + 600 / 64 / 3 + 0.1 * task.horizon  # the products
    rows = ours.study(task, 0, 2.5, {"tune": True})
    assert len(rows) >= 2 and rows[0][0] < rows[-1][0] and rows[0][1] < rows[-1][1]


def test_variants_and_groups_are_found_by_name():
    known = arms.arms("new", ['often={"every": 1, "start": 50, "study": true}'])
    assert known["often"].is_study and known["averages alone"].kind == "ours"
    picked = arms.chosen(["core", "self-tuned"], known)
    assert set(picked) == {*arms.GROUPS["core"], "self-tuned"}
    with pytest.raises(ValueError, match="expected one of"):
        arms.chosen(["nobody"], known)


def test_budgets_ratios_and_intervals():
    rows = [[1.0, 2.0, 0.5, 0.6, 0.1], [2.0, 4.0, 0.3, 0.4, 0.1], [3.1, 6.0, 0.4, 0.2, 0.1]]
    assert comparison.best_within(rows, 0.5) is None
    assert comparison.best_within(rows, 1) == rows[0]
    assert comparison.best_within(rows, 3) == rows[1]
    assert comparison.best_within(rows, 2, comparison.SECONDS) == rows[0]
    worse = [[*row[:2], 2 * row[2], 4 * row[3], row[4]] for row in rows]
    pair = comparison.compare("t", {0: rows, 1: rows, 2: rows}, {0: worse, 1: worse, 5: rows})
    assert pair.median == 0.5 and pair.median_test == 0.25 and pair.wins == 2
    assert pair.interval == (0.5, 0.5) and not pair.is_late
    assert comparison.compare("t", {0: rows}, {3: rows}) is None
    assert comparison.compare("t", {0: [[9.0, 9.0, 0.1, 0.1, None]]}, {0: rows}, 3).is_late
    assert comparison.ratio(math.inf, 1.0) == 100 and comparison.ratio(1.0, math.inf) == 0.01
    assert comparison.geometric_mean([0.5, 2.0]) == pytest.approx(1)


def found_results(tasks=("digits-sgd", "regression"), seeds=range(3)):
    """Made-up results: ours is at .8 of a cosine run on the first task, at 1.5 on the last."""
    rows = {}
    for seed in seeds:
        for task, ratio in zip(tasks, np.linspace(0.8, 1.5, len(tasks)).tolist(), strict=True):
            rows[task, "strong, constant", seed] = [[300.0, 1.0, 2.0, 2.0, None]]
            rows[task, "strong, cosine", seed] = [[300.0, 1.0, 1.0, 1.0, None]]
            rows[task, "self-tuned", seed] = [[450.0, 1.7, ratio, ratio, None]]
            rows[task, "TPE, cosine", seed] = [
                [300.0 * n, n, 2 / n, 2.0, None] for n in (1, 2, 20)
            ]
            rows[task, "PBT of 4", seed] = [[1900.0, 4.0, 0.4, 0.4, None]]
    known = arms.arms()
    names = {arm for _, arm, _ in rows}
    return Results({n: TASKS[n] for n in tasks}, {n: known[n] for n in names}, rows)


def test_losses_stand_in_front():
    found = found_results()
    first, second = report.by_task(found).splitlines()[2:]
    assert first.startswith("| regression | 1.50 [1.50, 1.50] | 0/3 | 1.50 | - | 1.70 | 1.50")
    assert first.endswith("| - | 1.50 | 3.75 |")  # the first guess, and the population of four
    assert second.startswith("| digits-sgd | 0.80")
    lines = report.by_peer(found, "self-tuned", (1, 10)).splitlines()
    assert lines[-1].startswith("| strong, constant | 0.55 |")
    assert any("| the best peer | 1.10 | 2.74 |" in line for line in lines)
    assert all("| 3 | [" in line for line in lines[2:])  # seeds, and an interval
    assert "| TPE, cosine | **0.1** |" in report.losses(found)


def test_tables_say_how_many_seeds_are_paired_and_give_two_no_interval():
    found = found_results()
    del found.rows["regression", "PBT of 4"][2]
    lines = report.by_peer(found, "self-tuned", (1, 10)).splitlines()
    (line,) = [line for line in lines if line.startswith("| PBT of 4 ")]
    assert "| 2 to 3 | - | 2.88 | 3.75 regression |" in line
    shown = headline.table({"one": {"a": [0.5, 0.7], "b": [1.2] * 5}, "ten": {"b": [0.9]}})
    assert shown.splitlines()[2:] == [
        "| one | 0.60 | **1.20** | 0.90 | 2 to 5 |", "| ten | - | 0.90 | 0.90 | 1 |",
    ]  # fmt: skip


def test_a_budget_bounds_searches_and_a_population_counts_from_its_size_on():
    found = found_results()

    def mean(peer, budget):
        return [round(p.median, 3) for p in found.pairs("self-tuned", peer, budget)]

    assert mean("TPE, cosine", 1) == [0.4, 0.75]
    assert mean("TPE, cosine", 10) == [0.8, 1.5]
    assert mean("TPE, cosine", 30) == []  # these tasks have budgets of ten
    for seed in range(3):
        del found.rows["digits-sgd", "TPE, cosine"][seed][1:]
    assert mean("TPE, cosine", 10) == [1.5]  # on the other it was not run that far
    assert mean("PBT of 4", 3) == [] and mean("PBT of 4", 10) == [2.0, 3.75]
    low, high = comparison.interval_of_mean([[0.5] * 4, [2.0] * 4])
    assert low == pytest.approx(1) and high == pytest.approx(1)


def test_the_best_of_several_is_ranked_at_paired_seeds_and_known_at_most_of_them():
    found = found_results(seeds=range(4))
    cells = found.rows["regression", "strong, cosine"], found.rows["regression", "PBT of 4"]
    for seed in (2, 3):  # seeds on which everybody does better, and the population was not run
        cells[0][seed][0][2] = found.rows["regression", "self-tuned"][seed][0][2] = 0.01
        del cells[1][seed]

    def best():
        return {p.task: round(p.median, 2) for p in found.pairs("self-tuned", "the best peer", 10)}

    found.rows["regression", "TPE, cosine"] = {}
    assert best() == {"digits-sgd": 2.0, "regression": 1.25}  # of four seeds two are too few
    cells[1][2] = [[4.0, 4.0, 0.004, 0.4, None]]
    assert best()["regression"] == 3.75


def test_the_readme_tells_report_tasks_from_development_tasks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.put(page, readme.section(found_results(("digits-sgd", "autoencoder", "table-yeast"))))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "**2 report tasks.** One self-tuned run ends at 1.31 of one plain run" in text
    assert "**1 development tasks.** One self-tuned run ends at 0.80 of" in text
    assert text.index("table-yeast (report)") < text.index("| digits-sgd |")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="suite: begin"):
        readme.put(page, "text")


def test_the_figure_is_drawn_of_report_tasks_where_there_are_any(tmp_path):
    pytest.importorskip("matplotlib")
    found = found_results(("digits-sgd", "autoencoder"))
    assert figure.draw(found, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (cosine,) = [r for r in figure.rows_of(found.half(True), "self-tuned") if "cosine" in r.words][
        :1
    ]
    assert cosine.ratios == {"autoencoder": 1.5}
    assert cosine.label(1).endswith("(1 run)")
    assert cosine.label(2).endswith("(1 run, 1 of 2 tasks)")
    found.arms.pop("self-tuned")
    assert figure.draw(found, tmp_path / "b.png") is None


def test_the_command_goes_on_from_its_results(tmp_path):
    options = ["--quick", "--out", "r.jsonl", "--seeds", "1", "--budget", "2"]
    peers = ["self-tuned", "GPSampler, linear", "strong, cosine", "strong, constant"]

    def run():
        return output_of("benchmarks/suite", tmp_path, *options, "--peers", *peers)

    out, file = run(), tmp_path / "r.jsonl"
    assert "| GPSampler, linear | " in out and (tmp_path / "r.md").exists()
    lines = file.read_text().splitlines()
    assert out.replace(" 0 s", "") and run() and file.read_text().splitlines() == lines
    changed = [json.loads(line) for line in lines]
    for key, value in changed:
        if key.startswith("ours") and "digits-sgd" in key:
            value["averaged"][0] = math.inf
    file.write_text("".join(json.dumps(pair) + "\n" for pair in changed))
    assert "| digits-sgd, 20 steps | 100.00" in run()
