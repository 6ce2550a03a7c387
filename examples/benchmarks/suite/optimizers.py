"""Optimizers by name: torch's, and those of optional packages.

Each takes param groups with their own learning rate and weight decay; a group without weight decay
keeps none. The packages are not requirements of the suite: a peer whose package is missing is left
out, with one line that says so.
"""

import torch

PACKAGES = {
    "schedule-free": "schedulefree",
    "prodigy": "prodigyopt",
    "mechanic": "mechanic_pytorch",
    "dadaptation": "dadaptation",
}


def sgd(groups):
    return torch.optim.SGD(groups, lr=1e-3)


def adam(groups):
    return torch.optim.Adam(groups)


def adamw(groups):
    return torch.optim.AdamW(groups)


def schedule_free(groups):
    import schedulefree

    # Its warm-up is counted in steps of its own: none here, the schedule of the peer warms up.
    return schedulefree.AdamWScheduleFree(groups)


def prodigy(groups):
    import prodigyopt

    return prodigyopt.Prodigy(groups)


def mechanic(groups):
    from mechanic_pytorch import mechanize

    return mechanize(torch.optim.AdamW)(groups)


def dadaptation(groups):
    from dadaptation import DAdaptAdam

    return DAdaptAdam(groups, decouple=True)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "schedule-free": schedule_free,
    "prodigy": prodigy,
    "mechanic": mechanic,
    "dadaptation": dadaptation,
}


ONE_RATE = ("prodigy", "dadaptation")  # these refuse groups whose learning rates differ


def regrouped(groups, settings, optimizer):
    """The groups for another optimizer: its own settings, our shares of learning rate and decay.

    Rates keep their ratio between groups (fine-tuning), groups without decay keep none.
    """
    largest = max(group["lr"] for group in groups)
    new = []
    for group in groups:
        entry = {"params": group["params"], **settings}
        if optimizer not in ONE_RATE:
            entry["lr"] = settings["lr"] * group["lr"] / largest
        if group.get("weight_decay") == 0.0:
            entry["weight_decay"] = 0.0
        new.append(entry)
    return new
