"""A plain torch loop, and the same loop that tunes its own learning rate. No study is needed.

Run ``python examples/one_run.py``: from a learning rate 100 times too small and one 100 times too
large, digits of scikit-learn, seconds. Needs ``pip install optuna_glocal[examples]``.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from optuna_glocal import SelfTuning


def load():
    """Scikit-learn's 8x8 digits: 1000 images to train on, 797 to validate on."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    return (x[:1000].float() / 16, y[:1000]), (x[1000:].float() / 16, y[1000:])


def setup(lr, seed=0):
    """Optimizer, training loss and validation loss of a batch, and loss on all validation data."""
    torch.manual_seed(seed)
    train, valid = load()
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def batch_loss(x, y):
        rows = torch.randint(len(x), (64,))
        return cross_entropy(model(x[rows]), y[rows])

    def validate():
        with torch.no_grad():
            return cross_entropy(model(valid[0]), valid[1]).item()

    return optimizer, lambda: batch_loss(*train), lambda: batch_loss(*valid), validate


def train(lr, steps, tunes, seed=0):
    """Returns the validation loss at the end, and the learning rate."""
    optimizer, training_loss, validation_loss, validate = setup(lr, seed)

    if not tunes:
        for _ in range(steps):
            optimizer.zero_grad()
            training_loss().backward()
            optimizer.step()
        return validate(), lr

    with SelfTuning(optimizer, validation_loss, horizon=steps, lr=(1e-6, 1.0)) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            run.backward(training_loss())  # was: loss.backward()
            optimizer.step()
        best = run.best_of(validate)  # at the last and at the averaged weights
        run.load_best()  # leaves them in the model
    return best, run.hyperparameters["lr"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of a run")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    steps = 40 if args.quick else args.steps
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    print(f"{'start':>8}{'held':>12}{'tunes itself':>16}{'lr at the end':>16}")
    for start in (1e-5, 1e-3, 1e-1):
        held, _ = train(start, steps, tunes=False)
        tuned, lr = train(start, steps, tunes=True)
        print(f"{start:8.0e}{held:12.4f}{tuned:16.4f}{lr:16.2g}")


if __name__ == "__main__":
    main()
