"""Which groups of which models masks can decide."""

from __future__ import annotations

import pytest

from matrix import traced
from vitprune.masks import MaskError, on_model
from vitprune.masks.check import difference
from zoo import CASES

# Groups that are left out, and kinds of which every group is, by models: group norms, norms over channels of images,
# norms that are written out in single operators.
WITHOUT_RESIDUAL = (
    "hf/poolformer", "timm/poolformer", "timm/caformer", "timm/coatnet", "timm/davit", "timm/edgenext", "timm/gcvit",
    "timm/maxxvit_nchw", "timm/mobilevitv2", "timm/samvit_no_neck",
)  # fmt: skip
KINDS_LEFT = {"hf/internvl": {"qk", "heads", "residual"}} | {name: {"residual"} for name in WITHOUT_RESIDUAL}
GROUPS_LEFT = {
    "timm/samvit": {"neck:mlp", "mlp"},
    "hf/sam": {"vision_encoder.neck:mlp"},
    "hf/vitdet": {"encoder.layer.1.residual:mlp", "encoder.layer.1.residual:mlp#2"},
    "hf/mobilevitv2": {f"mobilevitv2.encoder.layer.{i}:residual" for i in (2, 3, 4)},
    "timm/focalnet": {"residual", "residual#2"},
    "timm/gcvit": {"heads", "heads#2", "qk", "qk#2"},
    "timm/maxvit": {"residual#2"},
    "timm/maxvit_rmlp": {"residual#2"},
    "timm/maxxvit_nchw": {"stem:mlp"},
    "timm/shvit": {"residual", "residual#3", "stages:residual"},
    "timm/tiny_vit": {"residual#2"},
}
NOT_AT_ALL = {"timm/convnext"}
FEW = ("timm/samvit/fused", "hf/poolformer", "timm/convnext", "timm/beit/fused")


def check(name: str) -> None:
    """What is left out is what is known to be, with the reason; all else is masked as the oracle masks it."""
    ready = traced(CASES[name])
    if name in NOT_AT_ALL:
        with pytest.raises(
            MaskError, match="cannot be masked in any kind: .*; leave the kind out, or prune it by scores"
        ):
            on_model(ready.model, ready.graph)
        return
    gates = on_model(ready.model, ready.graph)
    base = name.removesuffix("/fused").removesuffix("/eager")
    known = {g.name for g in ready.graph.groups if g.kind in KINDS_LEFT.get(base, ())} | GROUPS_LEFT.get(base, set())
    inexact = {g.name for g in ready.graph.groups if not g.exact}
    tried = {group for group, why in gates.left.items() if "would differ" in why}
    assert tried - inexact == known
    assert difference(gates) < 1e-4


@pytest.mark.parametrize("name", FEW)
def test_what_masks_leave_out(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - set(FEW)))
def test_what_masks_leave_out_of_every_model(name: str) -> None:
    check(name)


def test_protected_groups_are_not_tried() -> None:
    ready = traced(CASES["timm/samvit/fused"])
    gates = on_model(ready.model, ready.graph, ("mlp",), protect=("neck:mlp", "mlp"))
    assert not gates.left and {g for v in gates.vectors for g in v.groups} == {"blocks.0.mlp:mlp", "blocks.1.mlp:mlp"}
    gates.close()
