"""The cells of the notebook run from the first to the last, as plain Python and at a tiny size."""

import json

import pytest
import torch
from scripts import EXAMPLES

pytest.importorskip("sklearn")
pytest.importorskip("plotly")


def test_the_notebook_runs_and_is_kept_without_outputs(capsys):
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    source = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    threads, names = torch.get_num_threads(), {}
    try:
        for code in source:
            code = code.replace("STEPS = 600", "STEPS = 40").replace("200", "40")
            exec(compile(code, "quickstart.ipynb", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "where the best trial's hyperparameters ended: {'lr':" in printed
    assert "gradients   1 given" in printed
