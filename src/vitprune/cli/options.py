"""Arguments and options that several commands share, and their parsing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vitprune.errors import TargetError

Number = TypeVar("Number", int, float)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME[?checkpoint=PATH&...], hf:ID-or-FOLDER, torchvision:NAME, module:package.mod:factory, "
        "shipped:fmnist-vit, or a folder saved by vitprune (hub:OWNER/NAME on the hub).",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="An image folder (train/CLASS and val/CLASS, or CLASS folders), fashion-mnist[:DIR], "
        "fashion-mnist-sample, cifar10:DIR, or datasets:DIR.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images per split.", show_default=False)]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read image files.")]
RepeatChannels = Annotated[
    bool, typer.Option("--repeat-channels", help="One-channel image files for a 3-channel model.")
]
ValFraction = Annotated[float, typer.Option(min=0.001, max=0.9, help="Share split off where there is no val/.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder to save in. [default: runs/NAME]", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output folder of vitprune's.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with a stopped run of the same settings.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
NewHead = Annotated[bool, typer.Option("--new-head", help="A new classifier for the classes of the data.")]
AllowModule = Annotated[
    str | None,
    typer.Option(metavar="PKG.MOD:FACTORY", help="Callable that a saved folder may name.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Epochs = Annotated[int, typer.Option(min=0, help="Epochs of training; 0 leaves it out.")]
Lr = Annotated[float, typer.Option(help="Peak learning rate, then cosine; Muon wants about ten times as much.")]
Optimizer = Annotated[str, typer.Option(help="adamw or muon.")]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A model of the same classes that teaches by its scores.", show_default=False),
]
DistillWeight = Annotated[float, typer.Option(help="Share of the teacher's term in the loss, where there is one.")]
DistillTemperature = Annotated[float, typer.Option(help="Of the softmax over the teacher's and the student's scores.")]
FeatureWeight = Annotated[
    float, typer.Option(help="Weight of the difference between the teacher's and the student's token features; 0: off.")
]
FeatureLayers = Annotated[
    str,
    typer.Option(
        metavar="PATTERN,...",
        help="Modules whose outputs are compared, such as blocks.* or STUDENT=TEACHER.",
        show_default="the last tokens",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other field of TrainSettings, such as keep=last; may be repeated."
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images per forward pass and process.")]
WeightDecay = Annotated[float, typer.Option(help="Not on biases and norms.")]
Warmup = Annotated[float, typer.Option(help="Epochs of linear warm-up.")]
Smoothing = Annotated[float, typer.Option(help="Label smoothing.")]
Mixup = Annotated[float, typer.Option(help="Alpha of mixup; 0 is off.")]
Cutmix = Annotated[float, typer.Option(help="Alpha of CutMix; 0 is off.")]
Ema = Annotated[float, typer.Option(help="Decay of averaged weights; 0 is off.")]
Patience = Annotated[
    int, typer.Option(min=0, help="Epochs without a better validation top-1 that end the training; 0: never.")
]
Flip = Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror training images at random.")]
CropPadding = Annotated[int, typer.Option(min=0, help="Pixels of padding before a random crop; 0 is off.")]
Erasing = Annotated[float, typer.Option(help="Probability of random erasing.")]
Accumulate = Annotated[int, typer.Option(help="Batches whose gradients are averaged for one step.")]
GradCheckpointing = Annotated[
    bool, typer.Option("--grad-checkpointing", help="Compute activations again instead of keeping them: less memory.")
]
Randaugment = Annotated[float, typer.Option(help="Magnitude of RandAugment, 0..10, for image files; 0 is off.")]
CheckpointEvery = Annotated[
    int, typer.Option(min=0, help="Steps between checkpoints within an epoch; 0: at the ends of epochs only.")
]
Tracker = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker", metavar="NAME", help="tensorboard, wandb, or another that accelerate knows; may be repeated."
    ),
]
LogDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of trackers' files. [default: OUT.logs]", show_default=False),
]
Amp = Annotated[str, typer.Option(help="auto, no, bf16 or fp16.")]

# options of commands that train which TrainSettings has under the same name
TRAINING = (
    *("lr", "batch_size", "weight_decay", "label_smoothing", "mixup", "cutmix"),
    *("ema", "flip", "crop_padding", "erasing", "amp", "optimizer", "seed"),
    *("distill_weight", "distill_temperature", "accumulate", "grad_checkpointing", "randaugment"),
    *("feature_weight", "feature_layers", "patience"),
)


def train_settings(epochs: int, more: Sequence[str] = (), **values: Any) -> Any:
    """The TrainSettings of a run, None for no epochs; `more` holds "name=value" texts for further fields.

    Raises TrainError for unknown names and values out of range.
    """
    from vitprune.recover import TrainError, TrainSettings

    defaults = TrainSettings().to_json()
    for pair in more:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or name not in defaults:
            raise TrainError(f"--set must be NAME=VALUE with a name of {', '.join(defaults)}, but got {pair!r}")
        kind = type(defaults[name])
        try:
            values[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            raise TrainError(f"--set {name} must be of type {kind.__name__}, but got {text!r}") from error
    return TrainSettings.from_json({"epochs": epochs, **values}) if epochs else None


def upkeep(every: int, trackers: Sequence[str] | None, log_dir: Path | None, out: Path) -> Any:
    """The Upkeep of a run into `out`. Raises TrainError for a tracker that cannot be had."""
    from vitprune.recover import Upkeep
    from vitprune.recover.tracking import check_trackers

    place = log_dir or out.absolute().with_name(f"{out.absolute().name}.logs")
    if trackers:
        check_trackers(trackers, place)
    return Upkeep(every, tuple(trackers or ()), place if trackers else None)


def cell_upkeep(every: int, trackers: Sequence[str] | None, log_dir: Path | None, place: Path) -> Callable[[Path], Any]:
    """What gives the Upkeep of each model of a study in `place`. Raises TrainError for a tracker that cannot be had."""

    def of(folder: Path) -> Any:
        return upkeep(every, trackers, None if log_dir is None else log_dir / folder.parent.name, folder)

    of(place / "runs" / "cell" / "model")  # said at once
    return of


def names(text: str) -> tuple[str, ...]:
    """The names in "a,b, c"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """The numbers in "0.5,1, 2". Raises TargetError, naming the option, for anything else."""
    return _parsed(option, text, float, "numbers")


def whole_numbers(option: str, text: str | None) -> tuple[int, ...]:
    """The whole numbers in "0,1, 2". Raises TargetError, naming the option, for anything else."""
    return _parsed(option, text, int, "whole numbers")


def _parsed(option: str, text: str | None, kind: Callable[[str], Number], what: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in names(text or ""))
    except ValueError as error:
        raise TargetError(f"{option} must be {what} joined by commas, but got {text!r}") from error


def ratios(pairs: Sequence[str]) -> dict[str, float]:
    """Ratio per kind of "mlp=0.5" and "mlp=0.6,heads=0.3" texts. Raises TargetError for other forms."""
    found: dict[str, float] = {}
    for pair in (part for text in pairs for part in text.split(",")):
        kind, _, number = (part.strip() for part in pair.partition("="))
        try:
            share = float(number)
        except ValueError as error:
            raise TargetError(f"--ratio must be KIND=SHARE, such as mlp=0.6,heads=0.5, but got {pair!r}") from error
        if kind in found:
            raise TargetError(f"--ratio must name a kind once, but gives {kind} {found[kind]:g} and {share:g}")
        found[kind] = share
    return found


def default_out(model: str, suffix: str) -> Path:
    """runs/NAME-SUFFIX with a name made of the model's."""
    head = model.partition("?")[0].rstrip("/")
    stem = head.replace("\\", "/").rpartition("/")[2].rpartition(":")[2] or "model"
    return Path("runs") / f"{stem}-{suffix}"


def checked_scope(text: str) -> Any:
    """The scope of that name. Raises TargetError for another word."""
    from vitprune.allocate import SCOPES

    if text not in ("auto", *SCOPES):
        raise TargetError(f"--scope must be one of auto, {', '.join(SCOPES)}, but got {text!r}")
    return text


def checked_sharing(text: str) -> Any:
    """The sharing strategy of that name. Raises MaskError for another word."""
    from vitprune.masks.errors import MaskError
    from vitprune.masks.vectors import SHARING

    if text not in SHARING:
        raise MaskError(f"--sharing must be one of {', '.join(SHARING)}, but got {text!r}")
    return text
