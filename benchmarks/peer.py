"""Torch-Pruning 1.6.1, wired by hand as its ViT examples do and made as strong as they allow, at a budget of MACs.

What its user has to know, and is done here: the head counts of every projection, the layers to leave alone, the sizes
that attention keeps as attributes, the gradients of its Taylor and Hessian importance, and the pruning ratio that gives
the MACs one wants (searched by bisection; the MACs are those of torch's FlopCounterMode, as everywhere here).

In its favour: attention divides by the root of the dims that are left, as in its examples (at half of the shipped ViT's
MACs 3 points better than the dense model's scale). The squared gradients of `GroupHessianImportance` are averaged over
all images; its own `accumulate_grad` looks names up in a table keyed by tensors, so that every image overwrites the one
before (2 to 25 points worse; `repaired=False` gives that). And DINOv2's classifier, which reads the class token beside
the mean of the patches, is given as two layers whose sum it is, as its graph gets the concatenation wrong.

Head dims: it takes the same dims out of every head of a layer, and the same of q, k and v, as it ties the three.

Needs the peer: pip install torch-pruning==1.6.1
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vitprune.models.loaded import logits
from vitprune.modes import evaluating

LABELLED = ("data", "labels")
IMPORTANCES: dict[str, tuple[str, ...]] = {"magnitude": (), "taylor": LABELLED, "hessian": LABELLED}
SCOPES: dict[str, dict[str, bool]] = {
    "local": {"global_pruning": False, "isomorphic": False},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
    "global": {"global_pruning": True, "isomorphic": False},
}
STRUCTURES: dict[str, str] = {
    "inner": "MLP units and head dims",
    "all": "these and the residual width, its default",
    "heads": "MLP units, whole heads, at a fifth of their ratio head dims, and the residual width, as the scripts of "
    "Isomorphic Pruning do (arXiv 2407.04616)",
}
HEAD_DIM_SHARE = 0.2  # of the ratio, in the structure "heads": 0.1 for 0.5 in the script for DeiT at 1.2 G
HALVINGS = 14  # of the bracket of ratios
TOLERANCE = 0.01  # of the wanted MACs
Gradients = list[Tensor | None]  # one per parameter: what the importance wants to find in `.grad`


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """What Torch-Pruning is told about one model."""

    heads: dict[nn.Module, int]  # projection -> number of heads
    writers: list[nn.Module]  # one layer per block that writes into the residual stream
    classifiers: list[nn.Module]
    finish: Callable[[dict[nn.Module, int]], None]  # writes head counts and dims back into the attention modules


class SplitHead(nn.Module):
    """transformers' DINOv2 classifier with its head as two layers; gives the same scores (B, classes)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.dinov2 = model.dinov2
        width, classes = model.config.hidden_size, model.config.num_labels
        self.of_token, self.of_patches = nn.Linear(width, classes), nn.Linear(width, classes, bias=False)
        with torch.no_grad():
            self.of_token.weight.copy_(model.classifier.weight[:, :width])
            self.of_token.bias.copy_(model.classifier.bias)
            self.of_patches.weight.copy_(model.classifier.weight[:, width:])

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) of (B, C, H, W)."""
        tokens_BND = self.dinov2(images).last_hidden_state
        scores: Tensor = self.of_token(tokens_BND[:, 0]) + self.of_patches(tokens_BND[:, 1:].mean(dim=1))
        return scores


def prepared(model: Any) -> nn.Module:
    """A copy that Torch-Pruning can be given, in eval mode."""
    ready = copy.deepcopy(model)
    return (SplitHead(ready) if hasattr(ready, "dinov2") else ready).eval()


def wire(model: Any) -> Wiring:
    """The wiring of a timm VisionTransformer, or of a `SplitHead`."""
    if hasattr(model, "blocks"):
        blocks = list(model.blocks)
        heads = {b.attn.qkv: b.attn.num_heads for b in blocks}
        return Wiring(heads, [b.mlp.fc2 for b in blocks], [model.head], lambda left: _finish_timm(blocks, left))
    layers = list(model.dinov2.encoder.layer)
    attentions = [layer.attention for layer in layers]
    heads = {p: a.num_attention_heads for a in attentions for p in (a.q_proj, a.k_proj, a.v_proj)}
    writers, classifiers = [layer.mlp.fc2 for layer in layers], [model.of_token, model.of_patches]
    return Wiring(heads, writers, classifiers, lambda left: _finish_dinov2(attentions, left))


def _finish_timm(blocks: Sequence[Any], left: dict[nn.Module, int]) -> None:
    for block in blocks:
        attention = block.attn
        attention.num_heads = left[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
        attention.scale = attention.head_dim**-0.5


def _finish_dinov2(attentions: Sequence[Any], left: dict[nn.Module, int]) -> None:
    for attention in attentions:
        attention.num_attention_heads = left[attention.q_proj]
        attention.head_dim = attention.q_proj.out_features // attention.num_attention_heads
        attention.scaling = attention.head_dim**-0.5


def gradients(model: nn.Module, importance: str, batches: Iterable[Any], *, repaired: bool = True) -> Gradients:
    """What the importance reads from `.grad`: batch gradients summed (taylor), or mean squares per image (hessian)."""
    parameters = list(model.parameters())
    if importance == "magnitude":
        return [None] * len(parameters)
    total = [torch.zeros_like(p) for p in parameters]
    count = 0
    with evaluating(model), torch.enable_grad():
        for images, labels in batches:
            whole = importance == "taylor"
            for x, y in [(images, labels)] if whole else zip(images.split(1), labels.split(1), strict=True):
                found = torch.autograd.grad(F.cross_entropy(logits(model(x)), y), parameters, allow_unused=True)
                count += 1
                for sum_, grad in zip(total, found, strict=True):
                    if grad is not None:
                        if not whole and not repaired:
                            sum_.zero_()
                        sum_ += grad if whole else grad.square()
    share = 1 if importance == "taylor" or not repaired else count
    return [t / share for t in total]


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one image, attention products included."""
    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)  # the counter's module hooks fail on results that are views
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1])
    for p, needed in zip(model.parameters(), wanted, strict=True):
        p.requires_grad_(needed)
    return int(counter.get_total_flops()) // 2


def at_ratio(
    model: nn.Module,
    x: Tensor,
    found: Gradients,
    importance: str,
    scope: str,
    structure: str,
    ratio: float,
    head_ratio: float | None = None,
) -> nn.Module:
    """A copy of `model` cut by Torch-Pruning at one pruning ratio, in eval mode; attention may have its own."""
    import torch_pruning as tp

    small = copy.deepcopy(model).eval()
    for p, grad in zip(small.parameters(), found, strict=True):
        p.grad = None if grad is None else grad.clone()
    wiring = wire(small)
    kinds = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
    }
    by_head, of_heads = structure == "heads", ratio if head_ratio is None else head_ratio
    of_dims = HEAD_DIM_SHARE * of_heads if by_head else of_heads
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")  # its guess is right here
        pruner = tp.pruner.BasePruner(
            small,
            x[:1],
            importance=kinds[importance](),
            pruning_ratio=ratio,
            pruning_ratio_dict=dict.fromkeys(wiring.heads, of_dims) if by_head or head_ratio is not None else None,
            ignored_layers=[*wiring.classifiers, *(wiring.writers if structure == "inner" else ())],
            num_heads=dict(wiring.heads),
            in_channel_groups={},  # its defaults are shared by all pruners of a process
            out_channel_groups={},
            prune_head_dims=True,
            prune_num_heads=by_head,
            head_pruning_ratio=of_heads if by_head else 0.0,
            output_transform=lambda out: logits(out).sum(),
            **SCOPES[scope],
        )
    pruner.step()
    wiring.finish(pruner.num_heads)
    for p in small.parameters():
        p.grad = None
    return small


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The model nearest to the wanted MACs."""

    model: nn.Module
    ratio: float  # Torch-Pruning's pruning_ratio
    macs: float  # share of the dense model's

    @property
    def parameters(self) -> int:
        """Parameters left."""
        return sum(p.numel() for p in self.model.parameters())


def prune(
    model: nn.Module, x: Tensor, found: Gradients, importance: str, scope: str, structure: str, target: float
) -> Found:
    """The cut model whose MACs are nearest to `target` of the dense ones, and at most 1 % above.

    Where heads or head dims are too coarse for that, they stay as found and the ratio of the rest is searched again.

    Raises ValueError when every ratio that was tried either costs more or gives a model that does not run.
    """
    dense = macs(model, x)

    def cut(ratio: float, head_ratio: float | None) -> Found:
        small = at_ratio(model, x, found, importance, scope, structure, ratio, head_ratio)
        return Found(small, ratio, macs(small, x) / dense)

    best = _search(lambda ratio: cut(ratio, None), target, 1.0)
    if best is None:
        raise ValueError(f"Torch-Pruning reaches no model of at most {target:.0%} of the MACs that runs")
    if best.macs < target * (1 - TOLERANCE) and (scope == "local" or structure == "heads"):
        finer = _search(lambda ratio: cut(ratio, best.ratio), target, best.ratio)
        best = finer if finer is not None and finer.macs > best.macs else best
    return best


def _search(cut: Callable[[float], Found], target: float, high: float) -> Found | None:
    """The nearest of the models at ratios between 0 and `high`, by bisection."""
    low, best = 0.0, None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        try:
            got = cut(ratio)
        except (RuntimeError, ValueError, IndexError, ZeroDivisionError):  # nothing is left of some layer
            high = ratio
            continue
        nearer = best is None or abs(got.macs - target) < abs(best.macs - target)
        if got.macs <= target * (1 + TOLERANCE) and nearer:
            best = got
        if abs(got.macs - target) <= TOLERANCE * target / 4:
            break
        low, high = (ratio, high) if got.macs > target else (low, ratio)
    return best
