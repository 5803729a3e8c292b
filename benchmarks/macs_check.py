"""MACs of every model of the test matrix against torch's own counter, dense and with every group at half its size.

vitprune's number is the cost polynomial at the group sizes; torch's is FlopCounterMode / 2 on a forward of one image.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from record import parser, setting, table, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

OPERATORS = (
    "Counted by both, one fused multiply-add as one MAC: matrix products (`linear`, `matmul`, `mm`, `bmm`, `addmm`, "
    "`baddbmm`, `einsum`, which torch sees as `mm`/`addmm`/`bmm`), convolutions, and the two products inside of "
    "`scaled_dot_product_attention`. Counted by neither: norms, activations, softmax, additions and other element-wise "
    "operators, pooling, interpolation, embedding look-ups. `model.requires_grad_(False)` is set, as the counter's "
    "module hooks fail on results that are views, and the fast path of `nn.MultiheadAttention` is off, as it hides the "
    "attention from the counter."
)


def counted(model: nn.Module, args: tuple[Any, ...]) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates by torch's counter, and per operator."""
    model.requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args)
    operators = {str(op): int(flops) // 2 for op, flops in counter.get_flop_counts()["Global"].items()}
    return int(counter.get_total_flops()) // 2, operators


def halved(graph: Any, seed: int) -> Any:
    """A plan that keeps a random half of every group but the whole branches."""
    from vitprune.plan import GroupPlan, Plan

    pick, groups = random.Random(seed), {}
    for g in graph.groups:
        if g.kind != "block":
            kept = (tuple(sorted(pick.sample(range(g.size), max(1, g.size // 2)))) for _ in range(g.lanes))
            groups[g.name] = GroupPlan(g.kind, g.size, g.lanes, tuple(kept))
    return Plan(groups=groups)


def check(case: Any, seed: int) -> dict[str, Any]:
    """One row: both counts, dense and shrunk."""
    from vitprune.errors import VitpruneError
    from vitprune.shrink import shrink
    from vitprune.trace import trace

    row: dict[str, Any] = {"case": case.name, "family": case.family, "listed": case.listed}
    try:
        model, example = case.model(seed), case.example(2)
        graph = trace(model, example)
        plan = halved(graph, seed)
        small = shrink(model, graph, plan, check=False, example=example)
    except VitpruneError as error:
        return {**row, "refused": str(error)}
    for title, module, sizes in (("dense", model, None), ("half", small, plan.sizes())):
        mine = graph.cost(sizes)[0]
        theirs, operators = counted(module, case.example(1))
        row |= {f"{title}_vitprune": mine, f"{title}_torch": theirs, f"{title}_operators": operators}
        if mine != theirs:
            row[f"{title}_torch_traced_call"] = counted(module, example)[0]
            row |= {"traced_batch": graph.batch, "first_axes": [len(t) for t in example]}
    return row


def verdict(row: dict[str, Any]) -> str:
    """ "equal", or what differs and why, for one row."""
    if "refused" in row:
        return f"refused: {row['refused']}"
    wrong = [t for t in ("dense", "half") if row[f"{t}_vitprune"] != row[f"{t}_torch"]]
    if not wrong:
        return "equal"
    batch = row["traced_batch"]
    if all(round(row[f"{t}_torch_traced_call"] / batch) == row[f"{t}_vitprune"] for t in wrong):
        return (
            f"different by definition: the call has tensors with first axes of {row['first_axes']} (texts and images), "
            f"so there is no cost of one image; vitprune's number is that of the traced call over {batch}, and torch's "
            f"count of that call over {batch} equals it"
        )
    return "DIFFERENT: " + ", ".join(f"{t} {row[f'{t}_vitprune'] - row[f'{t}_torch']:+,}" for t in wrong)


def main() -> None:
    """Check all cases and write the page."""
    options = parser(__doc__)
    options.add_argument("--only", default="", help="part of the case names")
    args = options.parse_args()
    from zoo import CASES

    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.backends.mha.set_fastpath_enabled(False)
    rows = []
    for name, case in CASES.items():
        if args.only in name:
            rows.append(check(case, args.seed))
            print(f"{name}: {verdict(rows[-1])}", file=sys.stderr, flush=True)
    operators: Counter[str] = Counter()
    for row in rows:
        operators.update(set(row.get("dense_operators", {})))
    equal = [r for r in rows if verdict(r) == "equal"]
    refused = [r for r in rows if "refused" in r]
    others = len(rows) - len(equal) - len(refused)
    cells = []
    for row in rows:
        numbers = [row.get(f"{t}_{s}") for t in ("dense", "half") for s in ("vitprune", "torch")]
        cells.append((row["case"], *(f"{n:,}" if n is not None else "" for n in numbers), verdict(row)))
    head = ("model", "dense, vitprune", "dense, torch", "half, vitprune", "half, torch", "verdict")
    sections = [
        f"{len(equal)} of {len(rows)} models equal to the last MAC, dense and shrunk; {others} different, with the "
        f"reason; {len(refused)} refused by the trace or the shrinking.",
        OPERATORS,
        table(("torch operator seen by its counter", "models"), sorted(operators.items())),
        table(head, cells),
    ]
    write(args.out, "macs-check", "MACs against FlopCounterMode", sections, rows, setting(args.threads, args.seed))


if __name__ == "__main__":
    main()
