"""Where a model's token features come out, and how those of two models are laid side by side.

B images, N tokens, D channels, H x W the grid of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from vitprune.modes import evaluating
from vitprune.recover.optimizer import block_list
from vitprune.recover.settings import TrainError

PREFIXES = (0, 1, 2, 4, 5)  # class, distillation and register tokens before the grid, together


class Taps:
    """Tensors that named modules gave in the last forward pass; to be opened for the time of training."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._model = model
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it, outputs are remembered."""
        handles = [self._model.get_submodule(n).register_forward_hook(self._keeper(n)) for n in self.names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def run(self, images: Tensor) -> list[Tensor]:
        """What a forward pass gives, as `take`; to be called while they are open."""
        self._model(images)
        return self.take()

    def take(self) -> list[Tensor]:
        """What the last forward pass gave, in the order of the names; forgotten afterwards."""
        missing = [name for name in self.names if name not in self._seen]
        if missing:
            raise TrainError(f"{missing[0]} gave no token features in training; name other layers by feature_layers")
        found = [self._seen[name] for name in self.names]
        self._seen.clear()
        return found

    def _keeper(self, name: str) -> _Keep:
        return _Keep(name, self._seen)


class _Keep:
    """A forward hook."""

    def __init__(self, name: str, seen: dict[str, Tensor]) -> None:
        self._name, self._seen = name, seen

    def __call__(self, _module: nn.Module, _inputs: object, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            self._seen.pop(self._name, None)
            self._seen[self._name] = tensor


def first_tensor(output: object) -> Tensor | None:
    """The output itself, or the first of a tuple."""
    value = output[0] if isinstance(output, tuple | list) and output else output
    return value if isinstance(value, Tensor) else None


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes that the modules' outputs have, in the order in which they come out."""
    seen: dict[str, Tensor] = {}
    handles = [m.register_forward_hook(_Keep(name, seen)) for name, m in model.named_modules() if name]
    try:
        with evaluating(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(tensor.shape) for name, tensor in seen.items()}


def is_tokens(shape: tuple[int, ...], batch: int) -> bool:
    """Whether an output holds several tokens per image: (B, N, D), (B, H, W, D) or (B, D, H, W)."""
    if len(shape) not in (3, 4) or shape[0] != batch:
        return False
    return shape[1] > 1 and shape[2] > 1 if len(shape) == 3 else sum(n > 1 for n in shape[1:]) == 3


def last_tokens(model: nn.Module, shapes: dict[str, tuple[int, ...]], batch: int) -> str:
    """The module that gives the last token features: the last one after the blocks whose output has their last shape.

    Raises TrainError for a model in which no module gives tokens.
    """
    modules = dict(model.named_modules())  # chains are left out: with gradient checkpointing they are not called
    tokens = [n for n, s in shapes.items() if is_tokens(s, batch) and not isinstance(modules[n], nn.Sequential)]
    if not tokens:
        raise TrainError(f"{type(model).__name__} has no module that gives tokens; name one by feature_layers")
    blocks = block_list(model)
    inside = [i for i, name in enumerate(tokens) if blocks and name.startswith(f"{blocks}.")]
    if not inside:
        return tokens[-1]
    wanted = shapes[tokens[inside[-1]]]
    return [name for name in tokens[inside[-1] :] if shapes[name] == wanted][-1]


def matching(shapes: dict[str, tuple[int, ...]], pattern: str, batch: int, whose: str) -> list[str]:
    """The modules that give tokens and whose names match, part by part ("blocks.*" is every block, nothing inside).

    The names of a model in a wrapper match without the wrapper's part. Raises TrainError for none.
    """
    tokens = [name for name, shape in shapes.items() if is_tokens(shape, batch)]
    for prefix in ("", "model."):
        parts = f"{prefix}{pattern}".split(".")
        names = [(name, name.split(".")) for name in tokens]
        found = [name for name, own in names if len(own) == len(parts) and all(map(fnmatchcase, own, parts))]
        if found:
            return found
    raise TrainError(f"feature_layers: no module of the {whose} that gives tokens matches {pattern!r}")


def to_tokens(x: Tensor) -> Tensor:
    """(B, N, D) of (B, N, D), (B, H, W, D) or (B, D, H, W), the latter two told apart by their square grid.

    Raises TrainError where both or neither might be the grid.
    """
    if x.ndim == 3:
        return x
    _, a, b, c = x.shape
    if (a == b) == (b == c):
        raise TrainError(
            f"token features of shape {tuple(x.shape)} might have their channels first or last; name layers that give "
            "(batch, tokens, channels) by feature_layers"
        )
    return x.flatten(1, 2) if a == b else x.flatten(2).transpose(1, 2)


def aligned(student_BND: Tensor, teacher_BND: Tensor, square: bool) -> tuple[Tensor, Tensor]:
    """Both with the student's patch tokens; equally many tokens are left as they are.

    Otherwise tokens before the grid are left out, and the teacher's grid is resized (bilinear) to the student's.
    square: whether images are square, so that grids are.

    Raises TrainError when the grids cannot be told.
    """
    counts = student_BND.shape[1], teacher_BND.shape[1]
    if counts[0] == counts[1]:
        return student_BND, teacher_BND
    sides = [math.isqrt(n) for n in counts]
    if not square or any(n - s * s not in PREFIXES for n, s in zip(counts, sides, strict=True)):
        raise TrainError(
            f"the student has {counts[0]} tokens and the teacher {counts[1]}, on grids that are not square; take a "
            "teacher of the same patches, or leave feature_weight at 0"
        )
    student, teacher = (x[:, x.shape[1] - s * s :] for x, s in zip((student_BND, teacher_BND), sides, strict=True))
    if sides[0] != sides[1]:
        grid = teacher.transpose(1, 2).reshape(len(teacher), -1, sides[1], sides[1])
        resized = nn.functional.interpolate(grid.float(), (sides[0], sides[0]), mode="bilinear", antialias=True)
        teacher = resized.flatten(2).transpose(1, 2)
    return student, teacher
