"""The models of random training loops that are fed images, sequences or tokens."""

import torch
from loop_models import Of, model
from torch import nn
from torch.nn import functional as F


def last(out):
    return out[0][:, -1]


@model("images")
def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), nn.SiLU(),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


@model("images")
def convolutions_batch_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


@model("images")
def convolutions_instance_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular"),
        nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


@model("images")
def depthwise_and_transposed():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Hardswish(), nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@model("images")
def patches_upsampled():
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2), nn.Tanh(), nn.PixelShuffle(2), nn.Upsample(scale_factor=0.5),
        nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(9, 3),
    )  # fmt: skip


@model("sequences")
def attention():
    return Of(
        lambda m, x: m.b(m.a(x, x, x, need_weights=False)[0].mean(1)),
        a=nn.MultiheadAttention(6, 2, batch_first=True), b=nn.Linear(6, 3),
    )  # fmt: skip


@model("sequences")
def causal_attention():
    def forward(m, x):
        q, k, v = m.a(x).reshape(len(x), 4, 2, 9).transpose(1, 2).split(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.b(out.transpose(1, 2).flatten(1))

    return Of(forward, a=nn.Linear(6, 18), b=nn.Linear(24, 3))


@model("sequences")
def transformer_layer():
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, activation="gelu", batch_first=True)
    return Of(lambda m, x: m.b(m.a(x)[:, 0]), a=layer, b=nn.Linear(6, 3))


@model("sequences")
def transformer_layer_with_dropout():
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.1, batch_first=True, norm_first=True)
    return Of(lambda m, x: m.b(m.a(x)[:, 0]), a=layer, b=nn.Linear(6, 3))


@model("sequences")
def rnn():
    return Of(lambda m, x: m.b(last(m.a(x))), a=nn.RNN(6, 5, batch_first=True), b=nn.Linear(5, 3))


@model("sequences")
def lstm():
    return Of(lambda m, x: m.b(last(m.a(x))), a=nn.LSTM(6, 4, batch_first=True), b=nn.Linear(4, 3))


@model("sequences")
def gru_both_ways():
    inner = nn.GRU(6, 3, batch_first=True, bidirectional=True)
    return Of(lambda m, x: m.b(last(m.a(x))), a=inner, b=nn.Linear(6, 3))


@model("sequences")
def cell_by_hand():
    def forward(m, x):
        h = torch.zeros(len(x), 4)
        for step in x.unbind(1):
            h = m.a(step, h)
        return m.b(h)

    return Of(forward, a=nn.GRUCell(6, 4), b=nn.Linear(4, 3))


@model("sequences")
def convolution_over_time():
    return Of(
        lambda m, x: m.b(torch.logsumexp(m.a(x.transpose(1, 2)), -1)),
        a=nn.Conv1d(6, 5, 2, padding=1, padding_mode="reflect"), b=nn.Linear(5, 3),
    )  # fmt: skip


@model("tokens")
def embedding_padded():
    return nn.Sequential(
        nn.Embedding(11, 4, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(20, 3)
    )


@model("tokens")
def embedding_max_norm():
    return nn.Sequential(nn.Embedding(11, 4, max_norm=1.0), nn.Flatten(), nn.Linear(20, 3))


@model("tokens")
def embedding_bag():
    return nn.Sequential(nn.EmbeddingBag(11, 6, mode="sum"), nn.Tanh(), nn.Linear(6, 3))


@model("tokens")
def embedding_bag_most():
    return nn.Sequential(nn.EmbeddingBag(11, 6, mode="max"), nn.Linear(6, 3))


@model("tokens")
def embedding_sparse():
    return nn.Sequential(nn.Embedding(11, 4, sparse=True), nn.Flatten(), nn.Linear(20, 3))


@model("tokens")
def tied_language_model():
    net = Of(
        lambda m, x: m.head(m.a(m.table(x)).tanh().mean(1))[:, :3],
        table=nn.Embedding(11, 4), a=nn.Linear(4, 4), head=nn.Linear(4, 11),
    )  # fmt: skip
    net.head.weight = net.table.weight
    return net
