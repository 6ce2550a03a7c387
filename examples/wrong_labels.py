"""Training where 40 % of the labels are wrong, with a learnt weight for every example.

``python examples/wrong_labels.py``: 1000 digits of scikit-learn with labels that may be wrong, 300
with sound ones to validate on; seconds. Needs ``pip install optuna_glocal[examples]``.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from optuna_glocal import SelfTuning, Vector


def load(seed=0):
    """(images, labels) to train on, to validate on, to test on; which labels are wrong."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    g = torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(x), generator=g).split([1000, 300, 497])
    train, valid, test = ((x[rows].float() / 16, y[rows]) for rows in parts)
    is_wrong = torch.rand(1000, generator=g) < 0.4
    shift = torch.randint(1, 10, (1000,), generator=g)
    return (train[0], (train[1] + is_wrong * shift) % 10), valid, test, is_wrong


def model_and_optimizer():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def accuracy(model, data):
    x, y = data
    return (model(x).argmax(1) == y).double().mean().item()


def fit(steps, model, optimizer, data, weights, backward=torch.Tensor.backward):
    x, y = data
    for _ in range(steps):
        optimizer.zero_grad()
        each = cross_entropy(model(x), y, reduction="none")
        backward((weights() * each).mean())
        optimizer.step()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of a run")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    steps = 100 if args.quick else args.steps
    torch.set_num_threads(1)
    train, valid, test, is_wrong = load()

    fixed = {"all examples": torch.ones(1000), "sound ones only": (~is_wrong).float()}
    for name, weights in fixed.items():
        model, optimizer = model_and_optimizer()
        fit(steps, model, optimizer, train, lambda weights=weights: weights)
        print(f"{name:18} test accuracy {accuracy(model, test):.3f}")

    model, optimizer = model_and_optimizer()
    with SelfTuning(
        optimizer,
        lambda: cross_entropy(model(valid[0]), valid[1]),
        horizon=steps,
        weight=Vector(1000, 0.0, 1.0),
    ) as run:
        fit(steps, model, optimizer, train, lambda: run["weight"], run.backward)
    told = ((run.vectors["weight"] < 0.5) == is_wrong).double().mean().item()
    print(f"{'learnt weights':18} test accuracy {accuracy(model, test):.3f}")
    print(f"told right from wrong: {told:.1%} of the labels")


if __name__ == "__main__":
    main()
