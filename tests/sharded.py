"""Three steps of one's own loop on a saved model, sharded by torch's FSDP2 where there are several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

import vitprune
from vitprune.processes import rank, world


def steps(folder: Path) -> dict[str, Tensor]:
    """The whole weights afterwards."""
    model = vitprune.load(folder).train()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 3
    if world() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        x, y = x[rank() :: world()], y[rank() :: world()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    if world() == 1:
        return dict(model.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    weights = steps(Path(sys.argv[1]))
    if rank() == 0:
        save_file({k: v.contiguous() for k, v in weights.items()}, sys.argv[2])
    distributed.destroy_process_group()
