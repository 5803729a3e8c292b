"""Every `vitprune` line of README and docs is run, with small models and few images in the place of what users have.

What a line names is there: folders in a home of its own, runs that other lines of the page would have made. timm's
models are made small, hub weights are left out, and options that shorten are added behind the line's own, of which the
last counts.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, Outcome
from test_docs import PAGES, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FASHION = Path("/usr/share/datasets/fashion-mnist")
CLOCK = "asks for a time, which a shared machine does not keep (test_latency.py has it by a clock that counts)"
LEFT_OUT = {"--target latency=": CLOCK, "--storage URL": "a name in capitals for a PostgreSQL server"}
FEW = "--limit 48 --batch-size 16 --workers 0"
SHORTER = {
    "prune": f"{FEW} --calibration 24",
    "sweep": f"{FEW} --calibration 24",
    "search": f"{FEW} --calibration 24",
    "dg": "--limit 30 --batch-size 16 --workers 0 --calibration 12 --seeds 0 --dense-epochs 1 --epochs 2 --ratios 0.3",
    "train": FEW,
    "finetune": FEW,
    "eval": "--limit 48 --batch-size 16 --workers 0",
    "bench": "--repeats 3 --batch 1",
    "export": "--images 24 --calibration 32 --latency-batch 1 --no-compile --max-drop 50 --workers 0",
}
EPOCHS = re.compile(r"--((?:mask-)?epochs) \d+")
LINES = [
    pytest.param(line.split(" #")[0].strip(), id=f"{page.stem}-{number}")
    for page in PAGES
    for number, line in enumerate(re.findall(r"^vitprune .*$", page.read_text(), re.MULTILINE))
]


def pictures(folder: Path, classes: str, count: int, seed: int) -> None:
    """Noisy colour images, brighter from class to class."""
    draw = np.random.default_rng(seed)
    for number, name in enumerate(classes.split()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 120, (20, 20, 3)) + 40 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def hf(folder: Path, classes: int, kind: str = "ViT") -> None:
    """A small transformers model."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        image_size=16, patch_size=4, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        num_labels=classes,
    )  # fmt: skip
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    extra = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(extra))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages say that users have."""
    home = tmp_path_factory.mktemp("home")
    for split, count in (("train", 40), ("val", 16)):
        pictures(home / "images" / split, "cat dog fox", count, count)
    for root, domains in (("PACS", "art photo sketch"), ("OfficeHome", "Art Clipart Product")):
        for seed, domain in enumerate(domains.split()):
            pictures(home / root / domain, "bike desk", 15, seed)
    hf(home / "vit-base", 2)  # the only one of the models of a study that is taken
    hf(home / "checkpoints/my-vit", 3)
    hf(home / "dinov2", 3, "Dinov2")
    return home


def short(line: str) -> list[str]:
    """The arguments of a line, made small."""
    line = re.sub(r"timm:\w+(\?[^'\" ]*)?", TINY, line).replace("/mnt/sets/fashion", str(FASHION))
    line = EPOCHS.sub(r"--\1 1", line)
    name, *arguments = shlex.split(line)[1:]
    extra = SHORTER.get(name, "")
    if "--pick" in line and "--epochs" not in line:  # nothing is trained
        extra = ""
    if name == "search" and "--pick" not in line:
        extra += " --max-drop 90" if "--max-drop" in arguments else ""
        extra += "" if "sensitivity" in arguments else " --trials 3"  # which probes all parts and fractions
    if name == "dg":
        at = arguments.index("--models") + 1
        arguments[at] = arguments[at].split(",")[0]
        extra += "" if "--scores" in arguments else " --scores magnitude-l2"
        extra += "" if "--held-out" in arguments else f" --held-out {'0' if 'rotated' in line else 'art'}"
    return [name, *arguments, *extra.split()]


def before(line: str) -> tuple[str, ...]:
    """The commands whose results the line names."""
    text, fashion = line.replace("--out small", ""), "shipped:fmnist-vit --data fashion-mnist"
    images = f"{TINY} --data ~/images"
    wanted = {
        r"\bsmall\b": f"prune {images} --target macs=0.6 --epochs 1 --out small",
        r"--teacher dense": f"train {images} --epochs 1 --out dense",
        r"report .*\bfront\b": f"sweep {images} --targets macs=0.7,macs=0.5 --epochs 0 --out front",
        r"report .*\bsweep\b": f"sweep {fashion} --targets macs=0.7 --epochs 0 --out sweep",
        r"--pick": f"search {images} --max-drop 90 --out runs/vit_small_patch16_224-search",
    }
    return tuple(f"vitprune {command}" for pattern, command in wanted.items() if re.search(pattern, text))


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what several lines need is made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize("line", LINES)
def test_the_line_does_what_it_says(
    line: str, command: Callable[..., Outcome], home: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, reason in LEFT_OUT.items():
        if part in line:
            pytest.skip(reason)
    if re.search(r"fashion-mnist(?!-sample)\b", line) and not FASHION.is_dir():
        pytest.skip("dataset-fashion-mnist not installed")
    if "executorch" in line:
        pytest.importorskip("executorch")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for needed in before(line):
        out = needed.rpartition("--out ")[2]
        if not (kept / out).exists():
            done = command(*short(needed))
            assert done.code == 0, done.err[-3000:]
            (kept / out).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(tmp_path / out, kept / out)
        elif not (tmp_path / out).exists():
            shutil.copytree(kept / out, tmp_path / out)
    if "compare.toml" in line or "--ratios-file" in line:
        files(tmp_path, command)
    done = command(*short(line))
    assert done.code == 0, done.err[-3000:]
    assert done.out.strip() or "--quiet" in line
    for out in re.findall(r"--(?:out|html) (\S+)", line):
        assert (tmp_path / out).exists(), out


def files(folder: Path, command: Callable[..., Outcome]) -> None:
    """The files that docs/usage.md shows, with fewer runs."""
    (toml,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "usage.md").read_text(), re.DOTALL)
    fewer = {"[0, 1, 2]": "[0]", ', "macs=0.33"': "", "epochs = 10": "epochs = 2\nlimit = 48", "= 256": "= 24"}
    for old, new in (fewer | {"mask-epochs = 5": "mask-epochs = 1"}).items():
        assert old in toml, old
        toml = toml.replace(old, new)
    (folder / "compare.toml").write_text(toml)
    groups = command("inspect", "shipped:fmnist-vit", "--json").json["groups"]
    (folder / "ratios.json").write_text(json.dumps({g["name"]: 0.75 for g in groups if g["kind"] == "mlp"}))
