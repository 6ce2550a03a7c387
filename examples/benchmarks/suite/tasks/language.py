"""Bytes of the Python standard library's source, split by file: a transformer and a GRU.

AdamW with a group without decay for biases and norms, gradients clipped to norm 1. The text is
that of the running interpreter, so figures are comparable on one Python version only.
"""

import functools
import hashlib
import pathlib
import sysconfig

import torch
from torch import nn
from torch.nn import functional as F

from ..task import Problem, Range, Task, steps_of
from .common import decayed

SYMBOLS, CONTEXT = 128, 64
SIZES = {"train": 4_000_000, "validation": 600_000, "test": 600_000}
EVALUATED = 256  # windows of each evaluation, at even distances


@functools.cache
def text():
    """Byte strings by part; a file belongs to the part that the hash of its name says."""
    folder, parts = pathlib.Path(sysconfig.get_paths()["stdlib"]), {name: [] for name in SIZES}
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/[a-z_]*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        share = hashlib.sha256(path.name.encode()).digest()[0] % 10
        part = {0: "validation", 1: "test"}.get(share, "train")
        parts[part].append(path.read_bytes())
    return {
        name: torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)[: SIZES[name]]
        .long()
        .clamp(max=SYMBOLS - 1)
        for name, pieces in parts.items()
    }


def windows(data, starts):
    """Inputs and next symbols of windows that begin at ``starts``."""
    rows = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(n, t, width)))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class Transformer(nn.Module):
    def __init__(self, width=48, heads=4, layers=2, dropout=0.05):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, SYMBOLS)
        nn.init.normal_(self.symbols.weight, std=0.02)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.symbols(x) + self.places)))


class Recurrent(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, 32)
        self.gru, self.head = nn.GRU(32, width, batch_first=True), nn.Linear(width, SYMBOLS)

    def forward(self, x):
        return self.head(self.gru(self.symbols(x))[0])


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def build(h, seed, network, batch):
    data, model = text(), network()

    def drawn(part, purpose):
        g = steps_of(seed, purpose)

        def draw():
            return windows(
                data[part],
                torch.randint(len(data[part]) - CONTEXT - 1, (batch,), generator=g),
            )

        return draw

    look = drawn("validation", 2)

    @torch.no_grad()
    def evaluate(part):
        starts = torch.linspace(0, len(data[part]) - CONTEXT - 2, EVALUATED).long()
        x, y = windows(data[part], starts)
        model.eval()
        output = model(x)
        model.train()
        wrong = (output.argmax(-1) != y).float().mean().item()
        return F.cross_entropy(output.flatten(0, 1), y.flatten()).item(), wrong

    return Problem(
        model,
        decayed(model, h),
        drawn("train", 1),
        lambda b, h: loss_of(model, b),
        lambda: loss_of(model, look()),
        evaluate,
        (batch, EVALUATED),
        clip=1.0,
    )


SPACE = {
    "lr": Range(1e-5, 0.1),
    "weight_decay": Range(1e-4, 1.0),
    "beta1": Range(0.8, 0.98, log=False),
    "beta2": Range(0.95, 0.999, log=False),
}
STRONG = {"lr": 3e-3, "weight_decay": 1e-2, "beta1": 0.9, "beta2": 0.99}
RECURRENT = {k: SPACE[k] for k in ("lr", "weight_decay", "beta1")}
WIDE = functools.partial(Transformer, width=96)

TASKS = [
    Task(
        "language-transformer",
        400,
        "adamw",
        SPACE,
        STRONG,
        functools.partial(build, network=Transformer, batch=8),
    ),
    Task(
        "language-transformer-wide",
        400,
        "adamw",
        SPACE,
        STRONG,
        functools.partial(build, network=WIDE, batch=16),
        is_long=True,
    ),
    Task(
        "language-gru",
        400,
        "adamw",
        RECURRENT,
        {"lr": 1e-2, "weight_decay": 1e-2, "beta1": 0.9},
        functools.partial(build, network=Recurrent, batch=8),
        is_report=True,
    ),
]
