"""A two-block toy transformer and its graph, written out by hand: the tests' independent idea of both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vitprune.trace.graph import Graph, Group, Member, OpCost
from vitprune.trace.polynomial import Polynomial

DIM, HEADS, HEAD_DIM, HIDDEN, TOKENS, CLASSES, PATCH = 32, 4, 16, 64, 9, 5, 12


class Block(nn.Module):
    """Attention with a fused qkv, then an MLP; pre-norm residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.qkv = nn.Linear(DIM, 3 * HEADS * HEAD_DIM)
        self.proj = nn.Linear(HEADS * HEAD_DIM, DIM)
        self.norm2 = nn.LayerNorm(DIM)
        self.fc1 = nn.Linear(DIM, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-1, -2) * HEAD_DIM**-0.5).softmax(-1) @ v
        x = x + self.proj(a.transpose(1, 2).reshape(batch, tokens, HEADS * HEAD_DIM))
        out: Tensor = x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm2(x))))
        return out


class Toy(nn.Module):
    """Tokens (B, 9, 12) -> logits (B, 5)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(PATCH, DIM)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x.mean(1))
        return out


def _index(*positions: np.ndarray) -> np.ndarray:
    return np.stack(positions, axis=-1).astype(np.int64)


def toy_graph() -> Graph:
    """The groups, costs and co-sizes of `Toy`."""
    every = _index(np.arange(DIM)[None])
    residual = [Member("embed.weight", 0, every), Member("embed.bias", 0, every), Member("head.weight", 1, every)]
    groups: list[Group] = []
    macs = [Polynomial.of({("residual",): TOKENS * PATCH}), Polynomial.of({("residual",): CLASSES})]
    params = [Polynomial.of({("residual",): PATCH + 1}), Polynomial.of({("residual",): CLASSES, (): CLASSES})]
    costs: list[OpCost] = [OpCost("embed", "linear", macs[0]), OpCost("head", "linear", macs[1])]
    units = np.arange(HEADS * HEAD_DIM).reshape(HEADS, HEAD_DIM)
    for b in range(2):
        at = f"blocks.{b}"
        width = HEADS * HEAD_DIM
        heads, qk, v, mlp = (f"{at}.{n}" for n in ("attn:heads", "attn:qk", "attn:v", "fc1:mlp"))
        fused = [units, units + width, units + 2 * width]
        by_head = np.concatenate(fused, axis=1)[None]  # (1, heads, 3 x head dim)
        groups += [
            Group(
                heads, "heads", HEADS, 1, None,
                (
                    Member(f"{at}.qkv.weight", 0, by_head),
                    Member(f"{at}.qkv.bias", 0, by_head),
                    Member(f"{at}.proj.weight", 1, units[None]),
                ),
                f"{at}", b,
            ),
            Group(
                qk, "qk", HEAD_DIM, HEADS, heads,
                (
                    Member(f"{at}.qkv.weight", 0, _index(fused[0], fused[1])),
                    Member(f"{at}.qkv.bias", 0, _index(fused[0], fused[1])),
                ),
                f"{at}", b,
            ),
            Group(
                v, "v", HEAD_DIM, HEADS, heads,
                (
                    Member(f"{at}.qkv.weight", 0, _index(fused[2])),
                    Member(f"{at}.qkv.bias", 0, _index(fused[2])),
                    Member(f"{at}.proj.weight", 1, _index(units)),
                ),
                f"{at}", b,
            ),
            Group(
                mlp, "mlp", HIDDEN, 1, None,
                (
                    Member(f"{at}.fc1.weight", 0, _index(np.arange(HIDDEN)[None])),
                    Member(f"{at}.fc1.bias", 0, _index(np.arange(HIDDEN)[None])),
                    Member(f"{at}.fc2.weight", 1, _index(np.arange(HIDDEN)[None])),
                ),
                f"{at}", b,
            ),
        ]  # fmt: skip
        for name, dim in (
            ("norm1.weight", 0),
            ("norm1.bias", 0),
            ("qkv.weight", 1),
            ("proj.weight", 0),
            ("proj.bias", 0),
        ):
            residual.append(Member(f"{at}.{name}", dim, every))
        for name, dim in (
            ("norm2.weight", 0),
            ("norm2.bias", 0),
            ("fc1.weight", 1),
            ("fc2.weight", 0),
            ("fc2.bias", 0),
        ):
            residual.append(Member(f"{at}.{name}", dim, every))
        linear = Polynomial.of({(heads, qk, "residual"): 2, (heads, v, "residual"): 2, (mlp, "residual"): 2})
        attention = Polynomial.of({(heads, qk): TOKENS**2, (heads, v): TOKENS**2})
        macs += [linear.scale(TOKENS), attention]
        costs += [OpCost(at, "linear", linear.scale(TOKENS)), OpCost(at, "attention", attention)]
        params += [linear, Polynomial.of({("residual",): 6, (heads, qk): 2, (heads, v): 1, (mlp,): 1})]
    groups.insert(0, Group("residual", "residual", DIM, 1, None, tuple(residual), "", None))
    cosize = tuple((f"blocks.{b}.attn:qk", f"blocks.{b}.attn:v") for b in range(2))
    return Graph(
        tuple(groups), (), tuple(costs), Polynomial.total(macs), Polynomial.total(params), cosize, (), 1, "toy"
    )


def random_scores(graph: Graph, seed: int = 0) -> dict[str, npt.NDArray[np.float64]]:
    """Group -> (lanes, units)."""
    rng = np.random.default_rng(seed)
    return {g.name: rng.random((g.lanes, g.size)) for g in graph.groups}
