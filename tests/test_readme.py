"""What the README shows runs, its figures are what was measured, and its links lead somewhere."""

import json
import pathlib
import re
import statistics

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md", *(ROOT / "examples").rglob("*.md"), *(ROOT / ".github").glob("*.md"),
]  # fmt: skip


def test_it_is_a_page():
    assert len(TEXT.splitlines()) <= 150


def test_its_script_runs_and_finds_a_learning_rate(capsys):
    pytest.importorskip("sklearn")
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    torch.manual_seed(0)
    exec(compile(script, "README.md", "exec"), {})
    loss, rate = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert loss < 0.5  # held at that start: 2.3
    assert rate > 1e-3


def test_its_table_is_that_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    from examples.benchmarks.suite import headline

    begin, end = headline.MARKS
    shown = TEXT.split(begin)[1].split(end)[0].strip()
    assert shown == headline.table(headline.stored())


def test_its_other_figures_are_those_of_the_tables():
    """Beside the table there is one measured sentence; its command is beside it in both."""
    (strengths,) = (line for line in TEXT.splitlines() if line.find("640 regularisation") >= 0)
    measured = (ROOT / "examples/benchmarks/README.md").read_text()
    (row,) = (line for line in measured.splitlines() if line.startswith("- **Strengths of digits"))
    for figure in ("640 ", ".72 [.69, .73]", "3.9 ", "--only weights --seeds 20"):
        assert figure in strengths and figure in row, figure
    reference = (ROOT / "examples/reference.md").read_text()
    small, large = (priced(measured, name) for name in ("MLP 64-32-10", "transformer, 2 layers"))
    shown = f"{small} plain ones on a small MLP and {large} on a transformer"
    for figure in (shown, "three copies of the parameters"):
        assert figure in TEXT and figure in reference, figure


def priced(measured, model):
    """From the least to the most of the exact prices in a row of the table of observed steps."""
    (row,) = (line for line in measured.splitlines() if line.startswith(f"| {model} | "))
    exact = [cell.split("x")[0].strip() for cell in row.split("|")[2:-1]]
    return f"{min(exact, key=float)} to {max(exact, key=float)}"


def test_the_figures_of_the_examples_page_are_those_of_the_stored_runs():
    runs = json.loads((ROOT / "examples/benchmarks/all_data.json").read_text())
    page = (ROOT / "examples/README.md").read_text()
    (claim,) = (
        line for line in page.splitlines() if "`python examples/benchmarks/all_data.py`" in line
    )
    for name in runs[0]:
        median = f"{statistics.median(run[name] for run in runs):.3f}".lstrip("0")
        assert f" {median}" in claim, f"{name}: {median}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_the_sentences_of_its_troubles_are_ours():
    rows = TEXT.split("says | do |")[1].split("\n\n")[0].splitlines()[2:]
    code = " ".join(path.read_text() for path in (ROOT / "optuna_glocal").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code)  # sentences that go on in the next line
    for row in rows:
        for piece in re.split(r"\s*\.\.\.\s*", row.split("|")[1].strip()):
            assert piece in code, piece
