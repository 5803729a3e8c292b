"""Device, precision and processes of a training run, by accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.recover.settings import TrainError
from vitprune.recover.tracking import check_trackers

PROJECT = "vitprune"  # name that trackers file runs under


def resolve_amp(amp: str, device: str) -> str:
    """The precision to run in; "auto" is "bf16" where the device multiplies in it, else "no"."""
    if amp != "auto":
        return amp
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if device == "cpu" and any(map(_cpu_has, ("amx_tile", "avx512_bf16"))) else "no"


def _cpu_has(units: str) -> bool:
    ask = getattr(torch.cpu, f"_is_{units}_supported", None)  # private to torch, and not in every version
    return ask is not None and bool(ask())


def _check_launch() -> None:
    """Raises TrainError for what a launcher asks for and this loop would not do, or do differently."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise TrainError(
                f"accelerate was launched with {name}, but here every process holds the whole model; launch without it "
                "and save memory by grad_checkpointing and accumulate"
            )
    passes = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if passes not in ("", "1"):
        raise TrainError(f"accelerate was launched with {passes} gradient accumulation steps; set accumulate instead")


class Runtime:
    """One accelerate Accelerator, and the model it may have wrapped for several processes."""

    def __init__(self, device: str, amp: str, trackers: Sequence[str] = (), log_dir: Path | None = None) -> None:
        """`device`: "cpu", "cuda", "cuda:0"; `amp`: "no", "bf16" or "fp16"; `trackers`: see `Upkeep`."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise TrainError(f"device {device!r} was asked for, but torch sees no CUDA device; use device 'cpu'")
        if not PartialState._shared_state or PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # else a second run keeps the first one's precision
        _check_launch()
        check_trackers(trackers, log_dir)
        self._accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=amp,
            step_scheduler_with_optimizer=False,
            log_with=list(trackers) or None,
            project_dir=log_dir,
        )
        self.distributed = self._accelerator.num_processes > 1
        named = torch.device(device)
        self.device = self._accelerator.device if self.distributed or named.index is None else named
        self.amp = amp

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return int(self._accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes files and progress."""
        return bool(self._accelerator.is_main_process)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return cast(Tensor, self._accelerator.reduce(value, reduction="mean")) if self.distributed else value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process; all must call it at the same time."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    @property
    def scaler(self) -> dict[str, float]:
        """The state of fp16's gradient scaling, empty without."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else dict(scaler.state_dict())

    @scaler.setter
    def scaler(self, state: dict[str, float]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)

    def wrap(self, model: nn.Module, images: Callable[[], Tensor]) -> nn.Module:
        """The module to call in training: the model itself, or its DistributedDataParallel wrapper.

        images: gives some, to find parameters that take no part, as some models of transformers have.
        """
        if not self.distributed:
            return model
        with evaluating(model):
            torch.autograd.backward(logits(model(images())).sum())
        unused = any(p.grad is None for p in model.parameters() if p.requires_grad)
        model.zero_grad(set_to_none=True)
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=unused,
        )

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer under accelerate, which adds the gradient scaling of fp16."""
        return self._accelerator.prepare_optimizer(optimizer)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs the forward pass in the run's precision."""
        with ExitStack() as stack:
            if self.amp != "no":
                dtype = torch.bfloat16 if self.amp == "bf16" else torch.float16
                stack.enter_context(torch.autocast(self.device.type, dtype))
            stack.enter_context(self._attention())
            yield

    def _attention(self) -> AbstractContextManager[Any]:
        """On the CPU in bf16 attention is plain matmuls: the backward pass of the fused kernel is far slower there.

        The backward pass needs this, too: gradient checkpointing computes the forward pass again in it.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        plain = self.device.type == "cpu" and self.amp == "bf16"
        return cast(AbstractContextManager[Any], sdpa_kernel([SDPBackend.MATH])) if plain else nullcontext()

    @contextmanager
    def alone(self, model: nn.Module, wanted: bool) -> Iterator[None]:
        """Where wanted, gradients of the wrapped model stay in their process: a later pass averages their sum."""
        with self._accelerator.no_sync(model) if wanted else ExitStack():
            yield

    def backward(self, loss: Tensor) -> None:
        """Back-propagates, scaled where fp16 needs it."""
        with self._attention():
            self._accelerator.backward(loss)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Averages over processes the gradients of parameters that stand outside of the wrapped model."""
        if self.distributed:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(self.mean(parameter.grad))

    def clip(self, parameters: list[nn.Parameter], limit: float) -> None:
        """Scales gradients down to a total norm of at most `limit`."""
        self._accelerator.clip_grad_norm_(parameters, limit)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return cast(Tensor, self._accelerator.reduce(value, reduction="sum")) if self.distributed else value

    def track(self, settings: Mapping[str, Any], step: int) -> None:
        """Opens the trackers. step: that the run goes on from; TensorBoard forgets what came after it."""
        if self._accelerator.log_with:
            more = {"tensorboard": {"purge_step": step + 1}} if step else {}
            self._accelerator.init_trackers(PROJECT, dict(settings), more)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hands values of the run after `step` steps to the trackers."""
        if self._accelerator.log_with:
            self._accelerator.log(dict(values), step=step)

    def end_tracking(self) -> None:
        """Closes the trackers."""
        for tracker in getattr(self._accelerator, "trackers", ()):
            tracker.finish()

    def wait(self) -> None:
        """Returns when every process has come here."""
        self._accelerator.wait_for_everyone()
