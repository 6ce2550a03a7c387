"""What the trials of both clusters train: a small network on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy


def setup(lr, seed=0):
    """Optimizer, training loss and validation loss of a batch, and loss on all validation data."""
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    torch.manual_seed(seed)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def batch_loss(x, y):
        rows = torch.randint(len(x), (64,))
        return cross_entropy(model(x[rows]), y[rows])

    def validate():
        with torch.no_grad():
            return cross_entropy(model(x[1000:]), y[1000:]).item()

    return (
        optimizer,
        lambda: batch_loss(x[:1000], y[:1000]),
        lambda: batch_loss(x[1000:], y[1000:]),
        validate,
    )
