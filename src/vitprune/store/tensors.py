"""Tensors of a model in one safetensors file, each stored once, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.errors import StoreError, listed

TIE = "tied:"  # metadata "tied:NAME" -> the name under which a shared tensor is stored


def save_tensors(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes the model's state dict; of tensors that are one object (tied weights) the first name holds the data.

    Raises StoreError when the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    notes = dict(metadata)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise StoreError(f"tensor {name!r} is on the meta device and has no values to save")
        data = tensor.detach()
        place = (data.device, data.data_ptr(), tuple(data.shape), data.stride(), data.dtype)
        if data.numel() and place in names:
            notes[TIE + name] = names[place]
            continue
        names[place] = name
        tensors[name] = data.cpu().clone(memory_format=torch.contiguous_format)
    try:
        save_file(tensors, path, metadata=notes)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The file's metadata. Raises StoreError for a pickle, or a file that is no whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} is no whole safetensors file: {error}") from error


def load_tensors_(path: Path, model: nn.Module) -> None:
    """Fills the model from the file, in place.

    Raises StoreError naming missing, extra and mis-shaped tensors, and for a file that is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: file.get_slice(name).get_dtype() for name in shapes}
            _match_dtype_(model, set(dtypes.values()))
            state = model.state_dict(keep_vars=True)
            ties = {n[len(TIE) :]: to for n, to in (file.metadata() or {}).items() if n.startswith(TIE)}
            _compare(path, shapes, ties, state)
            with torch.no_grad():
                for name, tensor in state.items():
                    _fill_(tensor, file.get_tensor(ties.get(name, name)))
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} is no whole safetensors file: {error}") from error


def refuse_pickle(path: Path) -> None:
    """Pass for anything but a pickle or torch archive. Raises StoreError: those can run code and are never loaded."""
    try:
        with path.open("rb") as file:
            start = file.read(9)  # of a safetensors file: the header's length (any bytes), then its "{"
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    if len(start) == 9 and start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise StoreError(f"{path} is a pickle or torch archive, which is never loaded; save the model as safetensors")


def _compare(
    path: Path, shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str], state: Mapping[str, Tensor]
) -> None:
    problems: list[str] = []
    missing = [n for n in state if ties.get(n, n) not in shapes]
    extra = [n for n in shapes if n not in state] + [n for n in ties if n not in state]
    wrong = [
        f"{n} is {list(shapes[ties.get(n, n)])}, must be {list(t.shape)}"
        for n, t in state.items()
        if ties.get(n, n) in shapes and shapes[ties.get(n, n)] != tuple(t.shape)
    ]
    for title, names in (("missing", missing), ("extra", extra), ("of another shape", wrong)):
        if names:
            problems.append(f"{title}: {listed(names)}")
    if problems:
        raise StoreError(f"{path}: tensors {'; '.join(problems)}; the file does not belong to this plan and model")


def _match_dtype_(model: nn.Module, stored: set[str]) -> None:
    """A model saved in half precision comes back in half precision, buffers that are not stored included."""
    names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    floats = [names[s] for s in stored if s in names]
    if len(floats) == 1 and any(t.is_floating_point() and t.dtype != floats[0] for t in model.parameters()):
        model.to(floats[0])


def _fill_(tensor: Tensor, data: Tensor) -> None:
    if tensor.dtype != data.dtype:  # mixed precision: each tensor as it was saved
        tensor.data = tensor.data.to(data.dtype)
    tensor.detach().copy_(data)
