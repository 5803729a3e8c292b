"""Reading checkpoints without pickle, and putting every tensor of one into a model, or saying which do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitprune.errors import ModelError

CONVERT = "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
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
    """The named tensors of a .safetensors file, and notes on the way.

    Raises ModelError when the file is missing, damaged, or of another kind (a pickle above all).
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return _stripped(load_file(path)), ()
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is no whole safetensors file ({error}); save it again") from error
    raise ModelError(
        f"{path} is no safetensors file; other formats (pickles among them) can run code and are never loaded; "
        f"convert it once where you trust it: {CONVERT}"
    )


def _stripped(state: State) -> State:
    """The tensors without the prefix that a wrapper (DDP, compile) put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


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
