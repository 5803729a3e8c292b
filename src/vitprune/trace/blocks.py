"""Whole residual branches: what stands between a residual stream and the addition that joins it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from vitprune.trace.capture import Captured, module_path, op_name
from vitprune.trace.marks import MARK
from vitprune.trace.propagate import Propagated
from vitprune.trace.value import Value

# operators that give zero for zero, and may stand between the branch's last module and the addition
HOMOGENEOUS = frozenset(
    [
        "mul",
        "dropout",
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "transpose",
        "slice",
        "roll",
        "contiguous",
        "clone",
        "alias",
        "flatten",
        "pad",
        "to",
        "type_as",
        MARK,
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One branch that can be taken out whole: its last module then gives zeros, the others hand on their input."""

    modules: tuple[str, ...]  # in the order they run
    nodes: frozenset[str]
    largest: str  # the module with most parameters, which names the branch


def find_branches(model: nn.Module, captured: Captured, propagated: Propagated) -> tuple[Branch, ...]:
    """The removable branches of the model, in the order of their additions."""
    found: list[Branch] = []
    taken: set[str] = set()
    names = parameter_names(model)
    for node in captured.nodes:
        if node.op != "call_function" or op_name(node) not in ("add", "add_") or len(node.args) < 2:
            continue
        a, b = node.args[0], node.args[1]
        if not isinstance(a, Node) or not isinstance(b, Node):
            continue
        for stream, end in ((a, b), (b, a)):
            branch = _branch(model, captured, propagated, node, stream, end)
            if branch is not None and not taken & set(branch.modules) and _owns_its_parameters(model, branch, names):
                found.append(branch)
                taken |= set(branch.modules)
                break
    return tuple(found)


def parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """All names of every parameter, by its id."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _owns_its_parameters(model: nn.Module, branch: Branch, names: Mapping[int, list[str]]) -> bool:
    """Whether no parameter of the branch is to be found outside of it, where taking it out would be felt."""
    return all(
        any(name.startswith(f"{path}.") for path in branch.modules)
        for path in branch.modules
        for parameter in model.get_submodule(path).parameters()
        for name in names[id(parameter)]
    )


def _value(propagated: Propagated, node: Node) -> Value | None:
    value = propagated.values.get(node.name)
    return value if isinstance(value, Value) else None


def _branch(
    model: nn.Module, captured: Captured, propagated: Propagated, add: Node, stream: Node, end: Node
) -> Branch | None:
    stream = _unmarked(stream)
    value, other = _value(propagated, stream), _value(propagated, end)
    if value is None or other is None or not value.depends or not other.depends or value.shape != other.shape:
        return None
    inside = _between(captured, propagated, stream, end)
    if inside is None or any(user not in inside and user is not add for n in inside for user in n.users):
        return None
    owner = module_path(add)
    last = _last_module(model, owner, end, inside)
    if last is None:
        return None
    order: dict[str, list[Node]] = {}
    for n in captured.nodes:
        if n in inside:
            child = _child(owner, n)
            if child is not None and _has_parameters(model, child):
                order.setdefault(child, []).append(n)
    everything: dict[str, set[str]] = {}
    for n in captured.nodes:
        child = _child(owner, n) if n.op == "call_function" else None
        if child in order and op_name(n) != MARK:
            everything.setdefault(str(child), set()).add(n.name)
    names = {n.name for n in inside}
    if any(not nodes <= names for nodes in everything.values()):
        return None
    for nodes in order.values():
        if not _keeps_shape(propagated, nodes):
            return None
    paths = [c for c in order if c != last] + [last]
    largest = max(paths, key=lambda p: sum(q.numel() for q in model.get_submodule(p).parameters()))
    return Branch(tuple(paths), frozenset(names), largest)


def _unmarked(node: Node) -> Node:
    while node.op == "call_function" and op_name(node) == MARK and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _between(captured: Captured, propagated: Propagated, stream: Node, end: Node) -> set[Node] | None:
    """The operators on the way from `stream` to `end`; None if something else of the input comes in."""
    found: set[Node] = set()
    stack = [end]
    reached = False
    while stack:
        node = stack.pop()
        if node in found:
            continue
        if _unmarked(node) is stream:
            reached = True
            continue
        value = _value(propagated, node)
        if node.op == "placeholder":
            if value is not None and value.depends:
                return None
            continue
        found.add(node)
        stack += node.all_input_nodes
    if not reached or len(found) >= 2000:
        return None
    found |= {user for node in found for user in node.users if _leads_nowhere(user)}
    return _without_shared(captured, found, end)


def _leads_nowhere(node: Node) -> bool:
    """Whether nothing uses the result: a check, or a part of a module's result that the caller drops."""
    return node.op == "call_function" and (
        op_name(node).startswith("_assert") or (op_name(node) == MARK and not node.users)
    )


def _without_shared(captured: Captured, found: set[Node], end: Node) -> set[Node]:
    """`found` less what does not depend on the model's input and is used elsewhere too, such as one mask for all."""
    while leaving := {n for n in found if n is not end and any(user not in found for user in n.users)}:
        shared = {n for n in leaving if not _depends(captured, n)}
        if not shared:
            break
        found -= shared
    return found


def _depends(captured: Captured, node: Node) -> bool:
    """Whether the model's input comes into a node."""
    seen, stack = {node}, [node]
    while stack:
        node = stack.pop()
        if node.name in captured.inputs:
            return True
        fresh = set(node.all_input_nodes) - seen
        seen |= fresh
        stack += fresh
    return False


def _child(owner: str, node: Node) -> str | None:
    """The module called by `owner` that ran the node; None for operators of `owner` itself or of other modules."""
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if owner not in paths or paths.index(owner) + 1 >= len(paths):
        return None
    return paths[paths.index(owner) + 1]


def _has_parameters(model: nn.Module, path: str) -> bool:
    return any(True for _ in model.get_submodule(path).parameters())


def _last_module(model: nn.Module, owner: str, end: Node, inside: Iterable[Node]) -> str | None:
    node = end
    members = set(inside)
    while node in members:
        child = _child(owner, node)
        if child is not None and _has_parameters(model, child):
            return child
        if op_name(node) not in HOMOGENEOUS and op_name(node) != "getitem":
            return None
        node = next((a for a in node.all_input_nodes if a in members), node)
        if node is end:
            return None
        end = node
    return None


def _keeps_shape(propagated: Propagated, nodes: list[Node]) -> bool:
    """Whether a module's result has its input's shape, so that either can stand for the other."""
    members = set(nodes)
    entering = [a for n in nodes for a in n.all_input_nodes if a not in members]
    values = [v for a in entering if (v := _value(propagated, a)) is not None and v.depends]
    leaving = [v for n in nodes if any(u not in members for u in n.users) and (v := _value(propagated, n)) is not None]
    return bool(values) and bool(leaving) and all(v.shape == values[0].shape for v in leaving)


def branch_of(branches: Mapping[str, Branch]) -> dict[str, str]:
    """Node name -> name of the branch group that it belongs to."""
    return {node: name for name, branch in branches.items() for node in branch.nodes}
