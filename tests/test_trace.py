"""The trace against matrices worked out by hand, on models of a few lines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matrix import counted_macs, half_plan, relative
from vitprune.errors import ModelError
from vitprune.plan import GroupPlan, Plan
from vitprune.shrink import difference, keep_from, shrink
from vitprune.trace import trace
from vitprune.trace.graph import Graph, Group
from zoo import CASES

B, N, C = 2, 3, 5  # images, tokens, channels of the input


def graph_of(model: nn.Module, *shape: int) -> Graph:
    """The graph of a model of tokens (B, N, C), or of another shape."""
    return trace(model.eval(), (torch.randn(B, *(shape or (N, C))),))


def index_of(group: Group, tensor: str, dim: int) -> list[list[list[int]]]:
    """Positions by lane and unit that one tensor's axis has in a group."""
    (found,) = [m.index for m in group.members if (m.tensor, m.dim) == (tensor, dim)]
    return found.tolist()


def only(graph: Graph, kind: str) -> Group:
    """The one group of a kind."""
    (group,) = [g for g in graph.groups if g.kind == kind]
    return group


def check(model: nn.Module, graph: Graph, *shape: int, tolerance: float = 1e-5) -> nn.Module:
    """The model with half of everything gone, asserted to equal the masked dense one."""
    torch.manual_seed(1)
    args = (torch.randn(B, *(shape or (N, C))),)
    plan = half_plan(graph)
    small = shrink(model, graph, plan, check=False, example=args)
    assert difference(model, small, keep_from(graph, plan), args, {}) < tolerance
    assert sum(p.numel() for p in small.parameters()) == graph.cost(plan.sizes())[1]
    return small


# -- whole models ------------------------------------------------------------------------------------------------------


class Attend(nn.Module):
    """2 heads of 3 dims from a fused qkv."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 18), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 6))
        return out


def test_fused_qkv_is_split_into_heads_and_their_dims():
    model = Attend()
    graph = graph_of(model)
    heads, qk, v = (only(graph, kind) for kind in ("heads", "qk", "v"))
    assert (heads.size, heads.lanes, heads.lane_group) == (2, 1, None)
    assert all((g.size, g.lanes, g.lane_group) == (3, 2, heads.name) for g in (qk, v))
    assert index_of(heads, "qkv.weight", 0) == [[[0, 1, 2, 6, 7, 8, 12, 13, 14], [3, 4, 5, 9, 10, 11, 15, 16, 17]]]
    assert index_of(heads, "proj.weight", 1) == [[[0, 1, 2], [3, 4, 5]]]
    assert index_of(qk, "qkv.weight", 0) == [[[0, 6], [1, 7], [2, 8]], [[3, 9], [4, 10], [5, 11]]]
    assert index_of(qk, "qkv.bias", 0) == index_of(qk, "qkv.weight", 0)
    assert index_of(v, "qkv.weight", 0) == [[[12], [13], [14]], [[15], [16], [17]]]
    assert index_of(v, "proj.weight", 1) == [[[0], [1], [2]], [[3], [4], [5]]]
    assert graph.cosize == ((qk.name, v.name),)
    check(model, graph)


def test_costs_of_attention_are_the_formula():
    graph = graph_of(Attend())
    heads, qk, v = (only(graph, kind).name for kind in ("heads", "qk", "v"))
    for h, d, e in ((2, 3, 3), (1, 2, 3), (2, 1, 2)):
        projections = N * C * h * (2 * d + e) + N * h * e * 7
        products = h * N * N * d + h * N * N * e
        parameters = (C + 1) * h * (2 * d + e) + (h * e + 1) * 7
        assert graph.cost({heads: h, qk: d, v: e}) == (projections + products, parameters)


class Glu(nn.Module):
    """Value and gate from one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(C, 8), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        u, g = self.both(x).chunk(2, dim=-1)
        out: Tensor = self.down(u * F.silu(g))
        return out


def test_glu_halves_go_together():
    model = Glu()
    graph = graph_of(model)
    (group,) = graph.groups
    assert (group.kind, group.size) == ("mlp", 4)
    assert index_of(group, "both.weight", 0) == [[[0, 4], [1, 5], [2, 6], [3, 7]]]
    assert index_of(group, "down.weight", 1) == [[[0], [1], [2], [3]]]
    assert graph.cost({group.name: 3}) == (N * (C * 6 + 3 * 6), 6 * (C + 1) + 6 * (3 + 1))
    check(model, graph)


class Joined(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(C, 3), nn.Linear(C, 2), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat([self.a(x).relu(), self.b(x).relu()], dim=-1))
        return out


def test_cat_gives_each_branch_its_own_columns():
    model = Joined()
    graph = graph_of(model)
    a, b = graph.groups
    assert (index_of(a, "a.weight", 0), index_of(a, "out.weight", 1)) == ([[[0], [1], [2]]],) * 2
    assert (index_of(b, "b.weight", 0), index_of(b, "out.weight", 1)) == ([[[0], [1]]], [[[3], [4]]])
    check(model, graph)


class Rotary(nn.Module):
    """Dims turned in pairs: neighbours (timm, EVA) or halves (transformers)."""

    def __init__(self, neighbours: bool) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.up, self.down = nn.Linear(C, 8), nn.Linear(8, 6)
        angle = torch.outer(torch.arange(N), torch.tensor([1.0, 0.3, 0.1, 0.03]))
        angle = angle.repeat_interleave(2, -1) if neighbours else angle.repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.neighbours:
            turned = torch.stack([-y[..., 1::2], y[..., ::2]], dim=-1).reshape(y.shape)
        else:
            turned = torch.cat([-y[..., 4:], y[..., :4]], dim=-1)
        out: Tensor = self.down(y * self.cos + turned * self.sin)
        return out


@pytest.mark.parametrize(
    ("neighbours", "units"), [(True, [[0, 1], [2, 3], [4, 5], [6, 7]]), (False, [[0, 4], [1, 5], [2, 6], [3, 7]])]
)
def test_rotary_pairs_are_one_unit(neighbours, units):
    model = Rotary(neighbours)
    graph = graph_of(model)
    (group,) = graph.groups
    assert index_of(group, "up.weight", 0) == index_of(group, "down.weight", 1) == [units]
    assert index_of(group, "cos", 1) == index_of(group, "sin", 1) == [units]
    small = check(model, graph)
    assert small.cos.shape == (N, 4)


class Stream(nn.Module):
    """A residual stream with a class token, positions, a norm, a depthwise convolution and two writers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 6)
        self.deep = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        x = x + self.down(self.up(self.norm(x)).relu())
        x = x + self.deep(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.head(x[:, 0])
        return out


def test_residual_stream_is_one_group_with_all_its_readers_and_writers():
    model = Stream()
    graph = graph_of(model, 3, 4, 4)
    residual, mlp = only(graph, "residual"), only(graph, "mlp")
    expected = {
        ("patch.weight", 0), ("patch.bias", 0), ("token", 2), ("place", 2), ("norm.weight", 0), ("norm.bias", 0),
        ("up.weight", 1), ("down.weight", 0), ("down.bias", 0), ("deep.weight", 0), ("deep.bias", 0),
        ("head.weight", 1),
    }  # fmt: skip
    assert {(m.tensor, m.dim) for m in residual.members} == expected
    assert all(m.index.tolist() == [[[u] for u in range(6)]] for m in residual.members)
    assert {(m.tensor, m.dim) for m in mlp.members} == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}
    reasons = {w: f.reason for f in graph.frozen for w in f.where.split(", ")}
    assert reasons["head.weight[0]"] == "the model's output"
    assert "input" in reasons["patch.weight[1]"]
    assert "kernel" in reasons["patch.weight[2]"]
    r, m = 4, 3
    macs = 4 * r * 12 + 5 * 2 * r * m + 5 * r * 3 + r * 4
    count = r * 12 + r + r + 5 * r + 2 * r + (r + 1) * m + (m + 1) * r + 3 * r + r + (r + 1) * 4
    assert graph.cost({residual.name: r, mlp.name: m}) == (macs, count)
    small = check(model, graph, 3, 4, 4)
    assert small.deep.groups == small.deep.in_channels == 3


def test_softmax_over_channels_is_flagged_before_anything_is_cut():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(C, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down(self.up(x).softmax(-1))
            return out

    (group,) = graph_of(Gate()).groups
    assert not group.exact
    assert any("softmax" in note for note in group.notes)


# -- what cannot be pruned ---------------------------------------------------------------------------------------------


@torch.library.custom_op("vitprune_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """An operator that no table has."""
    return x.flip(-1) * 2


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_unknown_operator_freezes_what_it_touches_and_is_reported():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(C, 8), nn.Linear(8, 7), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.b(mystery(self.a(x))).relu())
            return out

    model = Odd()
    graph = graph_of(model)
    assert len(graph.unknown_ops) == 1 and "mystery" in graph.unknown_ops[0]
    assert [{(m.tensor, m.dim) for m in g.members} for g in graph.groups] == [
        {("b.weight", 0), ("b.bias", 0), ("c.weight", 1)}
    ]
    frozen = {w: f.reason for f in graph.frozen for w in f.where.split(", ")}
    assert "mystery" in frozen["a.weight[0]"] and "fixed size" in frozen["b.weight[1]"]
    check(model, graph)


def test_unused_parameters_are_counted_and_left_alone():
    class Spare(Glu):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    model = Spare()
    graph = graph_of(model)
    assert not any(m.tensor.startswith("spare") for g in graph.groups for m in g.members)
    assert graph.cost()[1] == sum(p.numel() for p in model.parameters())
    small = check(model, graph)
    assert torch.equal(small.spare.weight, model.spare.weight)


def test_tied_weights_are_counted_once_cut_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 4)
            self.lift = nn.Linear(C, C)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            y = self.lift(x)
            y = y + self.first(y).relu()
            out: Tensor = self.head(y + self.second(y).relu())
            return out

    model = Tied()
    graph = graph_of(model)
    assert graph.cost()[1] == sum(p.numel() for p in model.parameters())
    small = check(model, graph)
    assert small.first.weight is small.second.weight
    assert small.first.weight.shape == (2, 2)


def test_a_forward_that_depends_on_values_is_refused_with_a_reason():
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="control flow"):
        graph_of(Branch())
    with pytest.raises(ModelError, match="at least 2"):
        trace(Glu(), (torch.randn(1, N, C),))


def test_the_trace_leaves_the_model_as_it_was():
    model = Glu().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.down.eval()
    trace(model, (torch.randn(B, N, C),))
    assert (model.training, model.both.training, model.down.training) == (True, True, False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model._forward_hooks and not model.both._forward_pre_hooks


def test_meta_tensors_are_enough():
    with torch.device("meta"):
        model = Attend()
    graph = trace(model.eval(), (torch.randn(B, N, C, device="meta"),))
    assert graph.fingerprint == graph_of(Attend()).fingerprint
    assert graph.cost() == graph_of(Attend()).cost()


# -- costs -------------------------------------------------------------------------------------------------------------


def test_macs_of_a_vit_are_the_closed_form():
    case = CASES["timm/vit_tiny/fused"]
    model, args = case.model(), case.example(2)
    graph = trace(model, args)
    width, depth = model.embed_dim, len(model.blocks)
    hidden = model.blocks[0].mlp.fc1.out_features
    patches = model.patch_embed.num_patches
    tokens = patches + 1
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    patch = patches * model.patch_embed.proj.weight.numel()
    want = patch + depth * block + width * model.num_classes
    assert graph.cost() == (want, sum(p.numel() for p in model.parameters()))
    assert counted_macs(case, model) == want
    assert sum(c.macs.evaluate(graph.sizes()) for c in graph.op_costs) == want


def test_a_plan_that_names_some_groups_leaves_the_others_whole():
    model = Joined()
    graph = graph_of(model)
    args = (torch.randn(B, N, C),)
    group = graph.groups[0]
    plan = Plan({group.name: GroupPlan(group.kind, group.size, group.lanes, ((0, 2),))})
    small = shrink(model, graph, plan, example=args)
    assert (small.a.out_features, small.b.out_features, small.out.in_features) == (2, 2, 4)
    want = model.out(torch.cat([model.a(args[0]).relu() * torch.tensor([1, 0, 1]), model.b(args[0]).relu()], dim=-1))
    assert relative(small(*args), want) < 1e-6
