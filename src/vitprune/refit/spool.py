"""The state of two replays per batch, in memory up to a limit, then on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils import _pytree as pytree

LIMIT = 2**30  # bytes in memory


class Spool:
    """Batch number -> any nest of tensors; what does not fit into `limit` bytes lies in a temporary folder."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.held: dict[int, tuple[int, Any]] = {}  # bytes and value
        self.files: dict[int, tuple[Any, list[Any], str]] = {}  # structure, leaves that are no tensors, device
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.held.clear()
        if self.folder is not None:
            self.folder.cleanup()

    def put(self, batch: int, value: Any) -> None:
        """Keep the value of a batch in place of the one before."""
        leaves, structure = pytree.tree_flatten(value)
        size = sum(leaf.untyped_storage().nbytes() for leaf in leaves if isinstance(leaf, Tensor))
        self.held.pop(batch, None)
        if size + sum(other for other, _ in self.held.values()) <= self.limit:
            self.held[batch] = (size, value)
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="vitprune-refit-")
        tensors = {str(i): leaf.cpu().clone(memory_format=torch.contiguous_format) for i, leaf in _tensors(leaves)}
        device = next((str(leaf.device) for _, leaf in _tensors(leaves)), "cpu")
        save_file(tensors, self._path(batch))
        self.files[batch] = (structure, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves], device)

    def take(self, batch: int) -> Any:
        """The value of a batch, which leaves the spool."""
        if batch in self.held:
            return self.held.pop(batch)[1]
        structure, leaves, device = self.files.pop(batch)
        for name, tensor in load_file(self._path(batch), device=device).items():
            leaves[int(name)] = tensor
        self._path(batch).unlink()
        return pytree.tree_unflatten(leaves, structure)

    def _path(self, batch: int) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"{batch}.safetensors"


def _tensors(leaves: list[Any]) -> list[tuple[int, Tensor]]:
    return [(i, leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
