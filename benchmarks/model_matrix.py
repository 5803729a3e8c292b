"""Every model of the test matrix, pruned and checked: writes docs/models.md.

    python benchmarks/model_matrix.py                             # all models, 25 minutes; may be interrupted
    python benchmarks/model_matrix.py --filter swin,hf/dinov2     # some
    python benchmarks/model_matrix.py --page                      # the page from the rows that are there

A row is kept as a line of JSON as soon as it is done, with a digest of the engine's sources and of the versions; rows
of the same digest are not run again. Half of the units go, drawn at random with a fixed seed, each head its own dims.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
ROWS = ROOT / "benchmarks" / "results" / "model_matrix.jsonl"
PACKAGES = ("torch", "timm", "transformers", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy")


def versions() -> dict[str, str]:
    """Of the packages that the rows depend on."""
    return {name: version(name) for name in PACKAGES}


def digest() -> str:
    """Of the engine's sources, the zoo's and the checks', and of the versions."""
    out = hashlib.sha256(json.dumps(versions()).encode())
    for folder in ("src/vitprune/trace", "src/vitprune/shrink", "tests/zoo"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            out.update(file.read_bytes())
    out.update((ROOT / "tests" / "matrix.py").read_bytes())
    return out.hexdigest()[:16]


def read_rows() -> dict[str, dict[str, Any]]:
    """Case name -> its last row."""
    if not ROWS.exists():
        return {}
    rows = [json.loads(line) for line in ROWS.read_text().splitlines() if line.strip()]
    return {row["case"]: row for row in rows}


def attempt(check: Callable[[], Any]) -> Any:
    """What the check returns, or {"error": type and first line}."""
    try:
        return check()
    except Exception as error:
        cause = error  # the first error of a chain says most
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [""]
        return {"error": f"{type(cause).__name__}: {lines[0][:300]}"}


def alone(ready: Any, kind: str | None) -> dict[str, Any]:
    """The gap with half of one kind gone (None: all kinds), or the reason why it is refused."""
    from matrix import half_plan, parameters
    from vitprune.errors import VitpruneError

    plan = half_plan(ready.graph, None if kind is None else [kind])
    try:
        small = ready.small(plan)
        out: dict[str, Any] = {"gap": ready.gap(small, plan)}
    except VitpruneError as error:
        return {"refused": str(error)}
    out["parameters"] = parameters(small) == ready.graph.cost(plan.sizes())[1]
    return out


def citizen(ready: Any, onnx: bool) -> dict[str, Any]:
    """What the model with half of everything gone can do."""
    import copy

    import matrix as m

    case = ready.case
    plan = m.half_plan(ready.graph)
    small = ready.small(plan)

    def gradients() -> list[str]:
        before, after = m.gradients(case, copy.deepcopy(ready.model)), m.gradients(case, copy.deepcopy(small))
        return sorted([n for n in before if n not in after] + [n for n, fine in after.items() if not fine])

    def macs() -> dict[str, list[int]]:
        pairs = {"dense": (ready.model, None), "half": (small, plan.sizes())}
        return {k: [m.counted_macs(case, model), ready.graph.cost(sizes)[0]] for k, (model, sizes) in pairs.items()}

    def export() -> dict[str, Any]:
        free = attempt(lambda: m.exported_gap(case, small))
        if not isinstance(free, dict):
            return {"gap": free, "batch": "free"}
        dense = attempt(lambda: m.exported_gap(case, ready.model))
        fixed = m.exported_gap(case, small, dynamic=False)
        return {"gap": fixed, "batch": "fixed", "why": free["error"], "dense too": isinstance(dense, dict)}

    def compiled() -> Any:
        try:
            return m.compiled_gap(case, small)
        except Exception:
            m.compiled_gap(case, ready.model)  # the dense model compiles: the error is ours
            raise

    with tempfile.TemporaryDirectory() as folder:
        return {
            "keys": m.structure(small) == m.structure(ready.model),
            "batches": attempt(lambda: m.batch_gap(case, small)),
            "copy": attempt(lambda: m.copy_problem(case, small)),
            "backward": attempt(gradients),
            "macs": attempt(macs) if m.one_batch(case) else None,
            "compile": attempt(compiled),
            "export": attempt(export),
            "onnx": onnx_of(case, small, ready.model, folder) if onnx else None,
        }


def onnx_of(case: Any, small: Any, dense: Any, folder: str) -> Any:
    """The gap of the shrunk model's ONNX file; {"dense too": why} where the exporter fails on the dense one as well."""
    import matrix as m

    found = attempt(lambda: m.onnx_gap(case, small, f"{folder}/small.onnx"))
    if isinstance(found, dict):
        before = attempt(lambda: m.onnx_gap(case, dense, f"{folder}/dense.onnx"))
        if isinstance(before, dict):
            return {"dense too": before["error"]}
    return found


def row(case: Any, onnx: bool) -> dict[str, Any]:
    """Everything about one model."""
    from matrix import traced

    start = time.monotonic()
    out: dict[str, Any] = {"case": case.name, "family": case.family, "listed": case.listed, "notes": case.notes}
    try:
        ready = traced(case)
    except Exception as error:
        return {**out, "refused": str(error)}
    graph = ready.graph
    out["groups"] = {k: [[g.lanes, g.size] for g in graph.groups if g.kind == k] for k in ready.kinds}
    out["inexact"] = [[g.name, g.kind, list(g.notes)] for g in graph.groups if not g.exact]
    out["frozen"] = [[f.where, f.size, f.reason] for f in graph.frozen]
    out["unknown"] = list(graph.unknown_ops)
    out["alone"] = {kind: alone(ready, kind) for kind in ready.kinds}
    out["all"] = alone(ready, None)
    if "gap" in out["all"]:
        out |= citizen(ready, onnx)
    return {**out, "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    """Runs what is missing and writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--filter", default="", help="parts of case names, joined by commas")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md")
    options.add_argument("--page", action="store_true", help="run nothing")
    options.add_argument("--again", action="store_true", help="run also what is there")
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()

    from model_matrix_page import page

    found, mark = read_rows(), digest()
    if not given.page:
        import torch

        from zoo import CASES

        torch.set_num_threads(given.threads)
        logging.disable(logging.CRITICAL)  # torch's exporters log every failed attempt
        parts = [p for p in given.filter.split(",") if p]
        for name, case in CASES.items():
            if parts and not any(p in name for p in parts):
                continue
            if not given.again and found.get(name, {}).get("digest") == mark:
                continue
            second = name.endswith("/eager") and not case.listed
            found[name] = row(case, onnx=not second) | {"digest": mark, "date": date.today().isoformat()}
            ROWS.parent.mkdir(parents=True, exist_ok=True)
            with ROWS.open("a") as file:
                file.write(json.dumps(found[name]) + "\n")
            print(
                f"{name}: {found[name].get('all', found[name].get('refused'))} {found[name].get('seconds')} s",
                flush=True,
            )
        rest = {name: found[name] for name in CASES if name in found}
        ROWS.write_text("".join(json.dumps(r) + "\n" for r in rest.values()))
        found = rest
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page(list(found.values()), versions(), mark))


if __name__ == "__main__":
    main()
