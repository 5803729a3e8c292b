"""Coverage-guided fuzzing of what reads files from anywhere, with atheris (Linux wheels on PyPI).

    python tests/fuzz_readers.py plan -runs=100000               # or: preprocessor, tensors, idx, config, ratios
    python tests/fuzz_readers.py tensors -max_total_time=600 -rss_limit_mb=3000

Every input must give a value or one of vitprune's own errors. Any other exception, a crash, or more memory than
-rss_limit_mb ends the run with an exit code other than 0 and keeps the input (-artifact_prefix=FOLDER/). Options after
the target are libFuzzer's. Files of JSON are also changed value by value, to reach what comes after the parser.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import torch
from safetensors.torch import save_file

from conftest import TINY

with atheris.instrument_imports(include=["vitprune", "json.decoder", "tomllib"]):
    import vitprune
    from vitprune.allocate.ratios import read_layer_ratios
    from vitprune.cli.config import read_config
    from vitprune.data.idx import read_idx
    from vitprune.errors import VitpruneError
    from vitprune.planjson import read_plan
    from vitprune.store.read import PREPROCESSOR, read
    from vitprune.store.tensors import load_tensors_, read_metadata

STUDY = """
model = "shipped:fmnist-vit"
data = "fashion-mnist"
seeds = [0, 1]
targets = ["macs=0.5"]

[common]
epochs = 2
ratios = "mlp=0.5"

[methods.magnitude]
method = "magnitude-l2"
rotate = false
"""
HOSTILE = [
    10**12, -1, 0, 2**63, 10**400, 1e308, float("nan"), True, None, "", "\0", "\ud800", "../../x", [], {}, [[[]]],
    {"a": {"b": []}}, [0] * 50, [-1, 2**40], "timm:vit_giant_patch14_224", "os:system",
]  # fmt: skip
JSON = ("plan", "preprocessor", "ratios")
WORK = Path(tempfile.mkdtemp(prefix="vitprune-fuzz-"))


def plan(data: bytes) -> None:
    """plan.json."""
    read_plan(data.decode("utf-8", "surrogateescape"))


def preprocessor(data: bytes) -> None:
    """preprocessor.json of a folder whose other files are as they should be."""
    (saved() / PREPROCESSOR).write_bytes(data)
    read(saved())


def tensors(data: bytes) -> None:
    """model.safetensors: its notes, and its tensors into a model."""
    path = WORK / "x.safetensors"
    path.write_bytes(data)
    read_metadata(path)
    load_tensors_(path, torch.nn.Linear(3, 2))


def idx(data: bytes) -> None:
    """Images of the MNIST family."""
    path = WORK / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(data, compresslevel=0))
    read_idx(path)


def config(data: bytes) -> None:
    """The file of vitprune compare."""
    path = WORK / "compare.toml"
    path.write_bytes(data)
    read_config(path)


def ratios(data: bytes) -> None:
    """A file of shares per layer."""
    path = WORK / "ratios.json"
    path.write_bytes(data)
    read_layer_ratios(path)


def trap(data: bytes) -> None:
    """A reader with a fault, by which the harness is tried."""
    if data[:1] == b"{":
        raise KeyError("a fault that is found")


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (plan, preprocessor, tensors, idx, config, ratios, trap)
}


def saved() -> Path:
    """A small saved model, made once."""
    folder = WORK / "saved"
    if not folder.exists():
        origin = vitprune.load_model(TINY)
        graph = vitprune.trace(origin)
        chosen = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.6")
        vitprune.save(folder, vitprune.shrink(origin, graph, chosen), chosen, origin)
    return folder


def seeds(target: str) -> Path:
    """A folder with good inputs, from which the search sets out."""
    folder = WORK / "seeds"
    folder.mkdir()
    if target in ("plan", "preprocessor"):
        (folder / "good").write_bytes((saved() / f"{target}.json").read_bytes())
    elif target == "tensors":
        save_file(dict(torch.nn.Linear(3, 2).state_dict()), folder / "good", metadata={"tied:a": "b"})
    elif target == "idx":
        (folder / "good").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + bytes(range(18)))
    elif target == "config":
        (folder / "good").write_text(STUDY)
    elif target == "ratios":
        (folder / "good").write_text('{"blocks.0.*": 0.5, "blocks.1.mlp": 1}')
    else:
        (folder / "good").write_bytes(b"[]")
    return folder


def one(target: str) -> Callable[[bytes], None]:
    """The function that is called with every input."""

    def tried(data: bytes) -> None:
        try:
            TARGETS[target](data)
        except VitpruneError as error:
            assert 0 < len(str(error)) < 4000, "an error is one readable message"

    return tried


def changed(data: bytes, max_size: int, seed: int) -> bytes:
    """The input with one JSON value replaced or removed; with any bytes changed where it is no JSON, or by chance."""
    draw = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict | list) or not value or draw.random() < 0.2:
        return bytes(atheris.Mutate(data, max_size))
    at: Any = value
    while True:
        key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.2:
            break
        at = at[key]
    if draw.random() < 0.2:
        del at[key]
    elif draw.random() < 0.3:
        at[key] = atheris.Mutate(json.dumps(at[key]).encode(), 40).decode("utf-8", "replace")
    else:
        at[key] = draw.choice(HOSTILE)
    return json.dumps(value).encode()[:max_size]


def main() -> None:
    """Fuzzes the target that the command line names."""
    target, options = sys.argv[1], sys.argv[2:]
    arguments = [sys.argv[0], str(seeds(target)), *options]
    atheris.Setup(arguments, one(target), custom_mutator=changed if target in JSON else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
