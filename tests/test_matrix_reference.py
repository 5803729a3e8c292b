"""An independent reference: plain models masked on their activations, by module names that are written down here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix import OLD_TRANSFORMERS, TOLERANCE, half_plan, output, relative, traced
from vitprune.plan import GroupPlan, Plan
from zoo import CASES


@dataclass(frozen=True)
class Layer:
    """Where one block keeps its parts; q and k as (linear, the first of its outputs)."""

    path: str
    mlp_path: str
    q: tuple[nn.Module, int]
    k: tuple[nn.Module, int]
    out: nn.Module
    second: nn.Module


class Reference:
    """Hand-written masks on a plain transformer's activations, by hooks; it knows nothing of the trace but the plan."""

    def __init__(self, model: nn.Module, layers: list[Layer], head_dim: int) -> None:
        self.model, self.layers, self.dim = model, layers, head_dim
        self.handles: list[Any] = []

    def zero(self, module: nn.Module, columns: list[int], *, output: bool) -> None:
        """Zero columns of what a module gives (`output`) or gets."""

        index = torch.tensor(columns, dtype=torch.long)

        def after(_: nn.Module, __: Any, result: Tensor) -> Tensor:
            return result.index_fill(-1, index, 0.0)

        def before(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0].index_fill(-1, index, 0.0),)

        self.handles.append(module.register_forward_hook(after) if output else module.register_forward_pre_hook(before))

    def mask(self, plan: Plan) -> None:
        """Install the hooks for the kinds heads, qk, v and mlp of a plan."""
        for layer in self.layers:
            for name, group in plan.groups.items():
                if group.kind == "mlp" and name.startswith(layer.mlp_path):
                    self.zero(layer.second, gone(group, 0), output=False)
                if not name.startswith(layer.path) or group.kind not in ("heads", "qk", "v"):
                    continue
                if group.kind == "heads":
                    dims = [h * self.dim + d for h in gone(group, 0) for d in range(self.dim)]
                else:
                    dims = [h * self.dim + d for h in range(group.lanes) for d in gone(group, h)]
                if group.kind in ("heads", "v"):
                    self.zero(layer.out, dims, output=False)
                else:
                    for linear, first in (layer.q, layer.k):
                        self.zero(linear, [first + d for d in dims], output=True)


def gone(group: GroupPlan, lane: int) -> list[int]:
    """Units of one lane that go."""
    return sorted(set(range(group.size)) - set(group.kept[lane]))


def timm_layers(model: Any) -> list[Layer]:
    return [
        Layer(f"blocks.{i}.attn", f"blocks.{i}.mlp", (b.attn.qkv, 0), (b.attn.qkv, b.attn.qkv.out_features // 3),
              b.attn.proj, b.mlp.fc2)
        for i, b in enumerate(model.blocks)
    ]  # fmt: skip


def hf_layers(model: Any) -> list[Layer]:
    body = model.vit if hasattr(model, "vit") else model.deit
    path = next(n for n, m in model.named_modules() if m is body.layers)
    return [
        Layer(f"{path}.{i}.attention", f"{path}.{i}.", (b.attention.q_proj, 0), (b.attention.k_proj, 0),
              b.attention.o_proj, b.mlp.fc2)
        for i, b in enumerate(body.layers)
    ]  # fmt: skip


def own_layers(model: Any) -> list[Layer]:
    return [
        Layer(
            f"stack.{i}.m", f"stack.{i}.f", (b.m.three, 0), (b.m.three, b.m.three.out_features // 3), b.m.back, b.f.down
        )
        for i, b in enumerate(model.stack)
    ]


NEW_NAMES = pytest.mark.skipif(OLD_TRANSFORMERS, reason="the masks are placed by the names of transformers 5.9")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("timm/vit_tiny/fused", timm_layers),
        ("timm/vit_tiny_avg/eager", timm_layers),
        ("timm/deit3_small/fused", timm_layers),
        pytest.param("hf/vit/fused", hf_layers, marks=NEW_NAMES),
        pytest.param("hf/deit/eager", hf_layers, marks=NEW_NAMES),
        ("handwritten/picture", own_layers),
    ],
)
def test_equals_masks_written_by_hand(name, layers) -> None:
    """Heads, q/k dims, v dims and hidden units of plain models, masked on activations by module name."""
    case = CASES[name]
    ready = traced(case)
    plan = half_plan(ready.graph, ["heads", "qk", "v", "mlp"])
    small = ready.small(plan)
    found = layers(ready.model)
    head_dim = next(g.size for g in ready.graph.groups if g.kind == "qk")
    reference = Reference(ready.model, found, head_dim)
    dense = output(case, ready.model, 2)
    reference.mask(plan)
    assert len(reference.handles) == sum(
        2 if g.kind == "qk" else 1 for g in plan.groups.values() if g.kept_size < g.size
    )
    want = output(case, ready.model, 2)
    assert relative(want, dense) > 1e-2
    assert relative(output(case, small, 2), want) < TOLERANCE
