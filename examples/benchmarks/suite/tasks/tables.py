"""Tables that ship with scikit-learn and river, under MLPs with layer normalisation and dropout.

``segment`` (2,310 rows, 7 classes), ``yeast`` (2,417 rows, 14 labels at once, over-fits),
``banana`` (5,300 rows of two columns, classes that overlap), ``cancer`` (200 rows to train on,
over-fits).
"""

import functools
import importlib.util
import io
import pathlib
import zipfile

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..task import Range, Task
from .common import decayed, split_of, standardised, supervised


def of_river(name):
    """A file among river's data sets, which is looked up without importing river."""
    found = importlib.util.find_spec("river")
    if found is None:
        raise ModuleNotFoundError("No module named 'river'", name="river")
    return pathlib.Path(found.submodule_search_locations[0]) / "datasets" / name


def split(x, y, n_train, n_validation):
    return split_of(standardised(torch.as_tensor(x), n_train), y, n_train, n_validation)


@functools.cache
def segment():
    import pandas

    table = pandas.read_csv(of_river("segment.csv.zip"))
    y = torch.as_tensor(table.pop("category").astype("category").cat.codes.to_numpy().copy())
    return split(table.to_numpy(dtype=float), y.long(), 1200, 555)


@functools.cache
def yeast():
    import pandas

    table = pandas.read_csv(of_river("yeast.csv.gz"))
    labels = [name for name in table.columns if name.startswith("Class")]
    y = torch.as_tensor(table[labels].to_numpy() > 0).float()
    return split(table.drop(columns=labels).to_numpy(dtype=float), y, 1200, 600)


@functools.cache
def banana():
    with zipfile.ZipFile(of_river("banana.zip")) as archive:
        rows = io.TextIOWrapper(archive.open("banana.all.txt")).read().split("\n")
    cells = [row.split() for row in rows if row.strip()]
    x = np.array([[float(cell.split(":")[1]) for cell in row[1:3]] for row in cells])
    y = torch.tensor([int(float(row[0]) > 0) for row in cells])
    return split(x, y, 2500, 1400)


@functools.cache
def cancer():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return split(x, torch.as_tensor(y).long(), 200, 180)


def network(inputs, width, outputs, dropout):
    layers = []
    for a in (inputs, width):
        layers += [nn.Linear(a, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def share_of_wrong_labels(output, y):
    return ((output > 0) != (y > 0.5)).float().mean().item()


def build(h, seed, table, width, batch, dropout=0.1):
    data = table()
    x, y = data.train
    outputs = y.shape[1] if y.dim() > 1 else int(y.max()) + 1
    model = network(x.shape[1], width, outputs, dropout)
    more = {}
    if y.dim() > 1:
        more = {"loss": F.binary_cross_entropy_with_logits, "error": share_of_wrong_labels}
    return supervised(model, decayed(model, h), data, batch, seed, **more)


SPACE = {
    "lr": Range(1e-5, 0.3),
    "weight_decay": Range(1e-4, 1.0),
    "beta1": Range(0.8, 0.98, log=False),
}
STRONG = {"weight_decay": 1e-2, "beta1": 0.9}


def task(name, steps, table, width, batch, lr=1e-2, **options):
    made = functools.partial(build, table=table, width=width, batch=batch)
    strong = STRONG | {"lr": lr}
    return Task(f"table-{name}", steps, "adamw", SPACE, strong, made, **options)


TASKS = [
    task("segment", 1000, segment, 64, 64),
    task("banana", 1000, banana, 64, 64),
    task("cancer", 300, cancer, 64, 32, 1e-3),
    task("yeast", 600, yeast, 96, 64, 1e-3, is_report=True, budget=30),
]
