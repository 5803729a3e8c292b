"""Dated results: a Markdown page with command, hardware and versions, and the raw rows as JSON lines beside it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from vitprune.markdown import markdown_table

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: see `setting`
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("vitprune", "torch", "timm", "transformers", "torchvision", "numpy", "scipy", "torch-pruning")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share: --seed, --threads, --out."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default 2)")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default benchmarks/results)")
    return out


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, 10th, 90th percentile)."""
    p10, median, p90 = np.percentile(values, (10, 50, 90))
    return float(median), float(p10), float(p90)


def mean_sd(values: Sequence[float], digits: int) -> str:
    """ "mean ± standard deviation", without the latter for a single value; "-" for none."""
    if not values:
        return "-"
    middle = f"{mean(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ± {stdev(values):.{digits}f}"


def shown(values: Sequence[float], digits: int = 2) -> str:
    """ "median (p10 to p90)"."""
    median, p10, p90 = spread(values)
    return f"{median:.{digits}f} ({p10:.{digits}f} to {p90:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    return "\n".join(markdown_table(head, [[str(cell) for cell in row] for row in rows], left={0}))


def setting(threads: int, seed: int) -> dict[str, str]:
    """What the numbers depend on: command, processor, memory, load, versions."""
    import torch

    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()
    return {
        "command": command,
        "seed": str(seed),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {gib:.0f} GiB",
        "threads": f"{threads}, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} (PASSIVE: threads that wait sleep; "
        "spinning ones make every operator many times slower on a machine that is shared)",
        "instruction set": str(torch.backends.cpu.get_cpu_capability()),
        "load at the end": f"{load[0]:.1f} (1 min), {load[1]:.1f} (5 min)",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package != "vitprune":
            return ""
    import vitprune

    return str(vitprune.__version__)


def write(
    out: Path,
    name: str,
    title: str,
    sections: Sequence[str],
    rows: Iterable[Mapping[str, Any]] | str,
    about: Mapping[str, str],
) -> Path:
    """The Markdown page, `<out>/<date>-<name>.md`; the rows go to the `.jsonl` file of the same name.

    rows: or the name of the file in `out` that holds them already.
    """
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{date.today().isoformat()}-{name}"
    raw = rows if isinstance(rows, str) else f"{stem}.jsonl"
    head = "\n".join(f"- {key}: {f'`{value}`' if key == 'command' else value}" for key, value in about.items())
    page = "\n\n".join([f"# {title}", head, *sections, f"Raw rows: `{raw}`."]) + "\n"
    (out / f"{stem}.md").write_text(page)
    if not isinstance(rows, str):
        (out / raw).write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    print(page)
    return out / f"{stem}.md"
