"""Models that no tool can know by name: a vision transformer in plain PyTorch, and a head for headless models."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, images, logits, register

__all__ = ["Headed", "Picture"]


class Headed(nn.Module):
    """A transformers model without a classifier, and a linear layer of 10 classes on its class token."""

    def __init__(self, body: Any, classes: int = 10) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(body.config.hidden_size, classes)

    def forward(self, *args: Tensor) -> Tensor:
        """Returns class logits, shape (batch, classes)."""
        hidden_BND = self.body(*args).last_hidden_state
        logits_BK: Tensor = self.classifier(hidden_BND[:, 0])
        return logits_BK


class Mix(nn.Module):
    """Attention over tokens: one linear for q, k and v, cut in three, heads by reshape, softmax written out."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.three = nn.Linear(width, 3 * width)
        self.back = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mixed tokens, shape (batch, tokens, width) as `x`."""
        b, n, c = x.shape
        a, e, v = self.three(x).chunk(3, dim=-1)
        a, e, v = (t.reshape(b, n, self.parts, c // self.parts).transpose(1, 2) for t in (a, e, v))
        s = a @ e.transpose(-2, -1) / math.sqrt(c // self.parts)
        w = torch.exp(s - s.amax(dim=-1, keepdim=True))
        w = w / w.sum(dim=-1, keepdim=True)
        mixed: Tensor = self.back((w @ v).transpose(1, 2).reshape(b, n, c))
        return mixed


class Gated(nn.Module):
    """A gated two-layer network: one linear gives value and gate, their product goes back."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        u, g = torch.chunk(self.both(x), 2, dim=-1)
        narrow: Tensor = self.down(u * torch.sigmoid(g))
        return narrow


class Layer(nn.Module):
    """Both, each after a norm and added to its input."""

    def __init__(self, width: int, parts: int, inner: int) -> None:
        super().__init__()
        self.n1 = nn.LayerNorm(width)
        self.m = Mix(width, parts)
        self.n2 = nn.LayerNorm(width)
        self.f = Gated(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        x = x + self.m(self.n1(x))
        y: Tensor = x + self.f(self.n2(x))
        return y


class Picture(nn.Module):
    """A vision transformer: patches cut by reshape, a class token, positions, layers, a head."""

    def __init__(
        self, size: int = 32, cut: int = 8, width: int = 32, parts: int = 4, inner: int = 44, layers: int = 2
    ) -> None:
        super().__init__()
        self.cut = cut
        self.embed = nn.Linear(3 * cut * cut, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.where = nn.Parameter(torch.zeros(1, (size // cut) ** 2 + 1, width))
        self.stack = nn.ModuleList(Layer(width, parts, inner) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.answer = nn.Linear(width, 10)

    def forward(self, picture: Tensor) -> Tensor:
        """Returns class logits, shape (batch, 10), for pixels of shape (batch, 3, size, size)."""
        b, c, h, w = picture.shape
        k = self.cut
        x = picture.reshape(b, c, h // k, k, w // k, k).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * k * k)
        x = torch.cat([self.first.expand(b, -1, -1), self.embed(x)], dim=1) + self.where
        for layer in self.stack:
            x = layer(x)
        classes: Tensor = self.answer(self.last(x)[:, 0])
        return classes


register(
    Case(
        "handwritten/picture", "hand-written", lambda: Picture().eval(), images(32), logits,
        notes="chunked qkv, softmax from exp and sum, gated MLP, patches by reshape",
    )
)  # fmt: skip
