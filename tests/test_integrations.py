"""Where a framework is missing, the import says what to install."""

import importlib
import sys

import pytest


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_framework_is_named_with_the_line_that_installs_it(monkeypatch, name):
    for part in {name, *(m for m in sys.modules if m.startswith(f"{name}."))}:
        monkeypatch.setitem(sys.modules, part, None)
    monkeypatch.delitem(sys.modules, f"optuna_glocal.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'optuna_glocal\[{name}\]'"):
        importlib.import_module(f"optuna_glocal.integrations.{name}")
