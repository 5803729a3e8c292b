"""Reading checkpoints without pickle, and putting every tensor of one into a model, or saying which do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitprune.errors import ModelError

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")  # as training scripts nest them
SHOWN = 5
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Misfit:
    """How the tensors of a checkpoint differ from those of a model."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshaped: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshaped)


def read_tensors(path: Path) -> tuple[State, tuple[str, ...]]:
    """The named tensors of a .safetensors file or of a torch file that `weights_only` accepts, and notes on the way.

    Raises ModelError when the file is missing, damaged, of another kind, or holds a pickle with code in it.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), ()
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is no whole safetensors file ({error}); save it again") from error
    if path.suffix not in TORCH_SUFFIXES:
        raise ModelError(f"a checkpoint is .safetensors or one of {', '.join(TORCH_SUFFIXES)}, but got {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} is a pickle that holds more than tensors, and unpickling it could run any code, so it is refused. "
            "If you trust its maker, convert it where you made it: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is no whole torch checkpoint ({error})") from error
    return _unwrap(content, path)


def _unwrap(content: object, path: Path) -> tuple[State, tuple[str, ...]]:
    notes: list[str] = []
    while isinstance(content, Mapping) and not _is_state(content):
        key = next((k for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        notes.append(f"took {key!r} out of {path.name}")
        content = content[key]
    if not isinstance(content, Mapping) or not _is_state(content):
        raise ModelError(f"{path} holds no named tensors, but {type(content).__name__}")
    state = {str(k): v for k, v in content.items()}
    for prefix in ("module.", "_orig_mod."):
        if all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state, tuple(notes)


def _is_state(content: Mapping[object, object]) -> bool:
    return bool(content) and all(isinstance(v, Tensor) for v in content.values())


def compare(model: nn.Module, state: Mapping[str, Tensor]) -> Misfit:
    """How `state` differs from the model's own tensors, by name and shape."""
    own = model.state_dict()
    return Misfit(
        missing=tuple(f"{k} {list(v.shape)}" for k, v in own.items() if k not in state),
        extra=tuple(f"{k} {list(v.shape)}" for k, v in state.items() if k not in own),
        misshaped=tuple(
            f"{k} {list(state[k].shape)} for {list(v.shape)}"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ),
    )


def load_weights_(
    model: nn.Module, state: Mapping[str, Tensor], *, where: str, head: Collection[str] = (), fresh_head: bool = False
) -> tuple[str, ...]:
    """Notes; every tensor of `state` is copied into `model`.

    With `fresh_head` the modules named in `head` keep their own initial weights where the checkpoint has none of that
    shape. Raises ModelError listing the first tensors that are missing, extra or of another shape.
    """
    own, given = model.state_dict(), dict(state)
    notes: tuple[str, ...] = ()
    if fresh_head:
        replaced = [k for k in own if _under(k, head) and (k not in given or given[k].shape != own[k].shape)]
        given |= {k: own[k] for k in replaced}
        given = {k: v for k, v in given.items() if k in own or not _under(k, head)}
        if replaced:
            notes = (f"the head is new, not from {where}: {', '.join(replaced)}",)
    misfit = compare(model, given)
    if misfit:
        raise ModelError(f"{where} does not fit the model: {describe(misfit)}")
    model.load_state_dict(given)
    return notes


def describe(misfit: Misfit) -> str:
    """The first tensors of every kind of misfit, as text."""
    parts = (("missing", misfit.missing), ("extra", misfit.extra), ("of another shape", misfit.misshaped))
    return "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in parts if names)


def last_linear(model: nn.Module) -> str | None:
    """The name of the last linear layer, which is the classifier of most models."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def _under(key: str, modules: Collection[str]) -> bool:
    return any(key == m or key.startswith(f"{m}.") for m in modules)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
