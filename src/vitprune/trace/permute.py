"""Units of a group in another order: the same function, where nothing tells the places of its units apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vitprune.trace.graph import Group, IndexArray


def permute_(group: Group, order: IndexArray, tensors: Mapping[str, Tensor]) -> None:
    """Puts unit `order[lane, i]` to place i of its lane; order: (lanes, size). tensors: by name, changed in place."""
    with torch.no_grad():
        for member in group.members:
            moved = np.take_along_axis(member.index, order[:, :, None], axis=1)
            tensor = tensors[member.tensor]
            to, source = (torch.as_tensor(i.reshape(-1), device=tensor.device) for i in (member.index, moved))
            tensor.index_copy_(member.dim, to, tensor.index_select(member.dim, source))
