"""One table of keys: distinct, prefixed, and the only place in the package that spells them."""

import pathlib
import re

import optuna_glocal
from optuna_glocal.storage import keys

TABLE = {name: value for name, value in vars(keys).items() if name.isupper() and name != "VERSION"}


def test_keys_are_distinct_and_prefixed():
    assert len(set(TABLE.values())) == len(TABLE)
    assert all(re.fullmatch(r"glocal:[a-z]+:?", value) for value in TABLE.values())


def test_no_other_module_spells_a_key():
    package = pathlib.Path(optuna_glocal.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "keys.py":
            assert not re.search(r"[^`]\"glocal:[a-z]", path.read_text()), path
