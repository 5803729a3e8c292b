"""What the matrix checks on one model, as functions that return numbers: tests assert them, a table prints them."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from vitprune.plan import GroupPlan, Plan, keep_all
from vitprune.shrink import difference, keep_from, shrink
from vitprune.trace import trace
from vitprune.trace.graph import Graph, Group
from zoo import Case

OLD_TRANSFORMERS = Version(transformers.__version__) < Version("5.9")  # its ViT has other modules
TOLERANCE = 1e-5  # relative, in float32


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """One model of the zoo and its graph."""

    case: Case
    model: nn.Module
    graph: Graph
    args: tuple[Any, ...]  # of batch 2

    @property
    def kinds(self) -> list[str]:
        """The kinds of group that the model has."""
        return sorted({g.kind for g in self.graph.groups})

    def small(self, plan: Plan) -> nn.Module:
        """The model shrunk by `plan`, unchecked."""
        return shrink(self.model, self.graph, plan, check=False, example=self.args)

    def gap(self, small: nn.Module, plan: Plan) -> float:
        """Largest difference between the shrunk and the masked dense model, relative to the largest output."""
        return difference(self.model, small, keep_from(self.graph, plan), self.args, {})


def traced(case: Case, seed: int = 0) -> Traced:
    """The case's model with random weights, traced at batch 2."""
    model, args = case.model(seed), case.example(2)
    with quiet():
        return Traced(case, model, trace(model, args), args)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of torch's exporters meanwhile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def half(group: Group, rng: random.Random) -> GroupPlan:
    """A random half of a group's units, each lane its own; of a whole branch, nothing."""
    count = max(1, group.size // 2) if group.kind != "block" else 0
    lanes = (tuple(sorted(rng.sample(range(group.size), count))) for _ in range(group.lanes))
    return GroupPlan(group.kind, group.size, group.lanes, tuple(lanes))


def half_plan(graph: Graph, kinds: Iterable[str] | None = None, seed: int = 0) -> Plan:
    """The plan that removes half of every group of these kinds (all but whole branches if None).

    Of whole branches every second one goes.
    """
    rng = random.Random(seed)
    chosen = set(kinds) if kinds is not None else {g.kind for g in graph.groups} - {"block"}
    groups: dict[str, GroupPlan] = {}
    branches = 0
    for group in graph.groups:
        goes = group.kind in chosen
        if group.kind == "block":
            branches += 1
            goes = goes and branches % 2 == 0
        groups[group.name] = half(group, rng) if goes else keep_all(group)
    return Plan(groups, graph.fingerprint)


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def output(case: Case, model: nn.Module, batch: int) -> Tensor:
    """The tensor to compare, for the example of this batch size."""
    with torch.no_grad():
        return case.out(model(*case.example(batch))).clone()


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest wanted value; infinite where shapes differ or a value is NaN."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.detach(), want.detach()
    gap = float((got - want).abs().max()) / max(float(want.abs().max()), 1e-12)
    return gap if gap == gap else float("inf")


def one_batch(case: Case) -> bool:
    """Whether all inputs have the batch in front; not so in a model of images and some texts, whose MACs per image have
    no meaning."""
    return all(a.shape[0] == 2 for a in case.example(2) if isinstance(a, Tensor))


def batch_gap(case: Case, model: nn.Module) -> float:
    """Largest difference of the rows that batches 1, 2 and 5 share."""
    one, two, five = (output(case, model, b) for b in (1, 2, 5))
    return max(relative(one, five[:1]), relative(two, five[:2]), relative(one, two[:1]))


def copy_problem(case: Case, model: nn.Module) -> str:
    """What is wrong with `copy.deepcopy(model)`, "" if it gives equal outputs and stands alone."""
    want = output(case, model, 2)
    other = copy.deepcopy(model)
    if relative(output(case, other, 2), want) > 0:
        return "the copy computes something else"
    ours = {p.data_ptr() for p in model.parameters()}
    if any(p.data_ptr() in ours for p in other.parameters()):
        return "the copy shares parameters"
    for tensor in other.parameters():
        tensor.data.mul_(1.5)
    if relative(output(case, model, 2), want) > 0:
        return "changing the copy changes the model"
    if relative(output(case, other, 2), want) < 1e-3:
        return "the copy's forward reads the model's parameters"
    return ""


def gradients(case: Case, model: nn.Module) -> dict[str, bool]:
    """Parameter name -> whether its gradient is finite, for those that get one in training mode."""
    modes = {m: m.training for m in model.modules()}
    model.zero_grad(set_to_none=True)
    model.train()
    try:
        torch.manual_seed(0)
        case.out(model(*case.example(5))).square().mean().backward()
        return {n: bool(p.grad.isfinite().all()) for n, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
        for module, mode in modes.items():
            module.training = mode


def structure(model: nn.Module) -> tuple[list[str], dict[str, type]]:
    """State-dict keys, and the class of every module by path."""
    return list(model.state_dict()), {path: type(module) for path, module in model.named_modules()}


def rolled_gaps(ready: Traced, small: nn.Module, plan: Plan) -> dict[str, float]:
    """Per pruned group the change of the output when the kept positions of one member are shifted by one.

    Members whose shift makes no difference by algebra (a bias of keys, which the softmax cancels) are passed over, and
    so are groups that the output does not read (the pooling head of a SigLIP that classifies by the mean).
    """
    want = output(ready.case, small, 2)
    tensors = dict(small.named_parameters())
    found: dict[str, float] = {}
    for name in plan.pruned():
        group = ready.graph[name]
        best, read = 0.0, False
        for member in sorted(group.members, key=lambda m: -len(tensors[m.tensor].shape) if m.tensor in tensors else 0):
            parameter = tensors.get(member.tensor)
            if parameter is None or parameter.shape[member.dim] < 2:
                continue
            old = parameter.data.clone()
            parameter.data.copy_(old.roll(1, member.dim))
            best = max(best, relative(output(ready.case, small, 2), want))
            parameter.data.fill_(float("nan"))
            read = read or output(ready.case, small, 2).isnan().any()
            parameter.data.copy_(old)
            if best > 1e-4:
                break
        if read:
            found[name] = best
    return found


class OneTensor(nn.Module):
    """A model that returns the tensor to compare only."""

    def __init__(self, case: Case, model: nn.Module) -> None:
        super().__init__()
        self.model, self.pick = model, case.out

    def forward(self, *args: Any) -> Tensor:
        """Returns the tensor to compare."""
        return self.pick(self.model(*args))


def compiled_gap(case: Case, model: nn.Module, backend: str = "aot_eager") -> float:
    """Difference between the model and `torch.compile(model, fullgraph=True)`, at batches 2 and 5."""
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, backend=backend)
    with quiet():
        return max(relative(output(case, fast, b), output(case, model, b)) for b in (2, 5))


def exported(case: Case, model: nn.Module, dynamic: bool = True) -> torch.export.ExportedProgram:
    """`torch.export` of the model, the batch size free if `dynamic`."""
    args = case.example(4)  # not 3: the models of images and texts have 3 texts
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=2, max=64)
        other = case.example(2)
        free = [{0: batch} if a.shape[0] != b.shape[0] else None for a, b in zip(args, other, strict=True)]
        shapes = (tuple(free),)
    with quiet(), torch.no_grad():
        return torch.export.export(OneTensor(case, model), args, dynamic_shapes=shapes, strict=False)


def exported_gap(case: Case, model: nn.Module, dynamic: bool = True) -> float:
    """Difference between the model and its `torch.export`; at another batch size than exported if `dynamic`."""
    batch = 5 if dynamic else 4
    with torch.no_grad():
        got = exported(case, model, dynamic).module()(*case.example(batch))
    return relative(got, output(case, model, batch))


def onnx_gap(case: Case, model: nn.Module, path: str) -> float:
    """Difference between the model and onnxruntime on its ONNX file, written to `path`."""
    import onnxruntime

    args = case.example(2)
    with quiet(), torch.no_grad():
        torch.onnx.export(OneTensor(case, model), args, path, dynamo=True, verbose=False, external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)}
    return relative(torch.from_numpy(session.run(None, fed)[0]), output(case, model, 2))


def counted_macs(case: Case, model: nn.Module) -> int:
    """Multiply-accumulates for one image by torch's own counter (half its FLOPs)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    trained = [p for p in model.parameters() if p.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides the attention from the counter
    model.requires_grad_(False)  # the counter's module hooks fail on outputs that are views
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # older ones miss the fused one
            model(*case.example(1))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops()) // 2
