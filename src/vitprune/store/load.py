"""Reading a saved folder back into the module that it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vitprune.errors import StoreError
from vitprune.plan import Plan
from vitprune.preprocessing import Preprocessing
from vitprune.store.probe import check_probe
from vitprune.store.read import MODEL, PROBE, Contents, read
from vitprune.store.tensors import load_tensors_, read_metadata

Rebuild = Callable[[Plan, Preprocessing], nn.Module]  # plan and input format -> shrunk skeleton, weights of no matter


def load(folder: Path | str | Contents, rebuild: Rebuild, device: str = "cpu") -> nn.Module:
    """The saved model, in eval mode on `device`: the class of its own library, with pruned widths.

    Raises StoreError when the folder is none of vitprune's, was edited, has missing, extra or mis-shaped tensors, or
    does not answer the stored probe as the saved model did.
    """
    contents = folder if isinstance(folder, Contents) else read(Path(folder))
    if read_metadata(contents.folder / MODEL).get("plan") != contents.plan_digest:
        raise StoreError(
            f"{contents.folder}: plan.json was edited: its checksum is not the one stored with the weights"
        )
    model = rebuild(contents.plan, contents.preprocessing)
    load_tensors_(contents.folder / MODEL, model)
    model.eval()
    check_probe(contents.folder / PROBE, model)
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise StoreError(f"device {device!r} cannot be used: {error}") from error
