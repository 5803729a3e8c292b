"""`vitprune sweep`: one model after the other pruned with a changing target or weight, and the front of them all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitprune.allocate.target import Target
from vitprune.differences import differing
from vitprune.errors import StoreError, TargetError, VitpruneError
from vitprune.files import check_free, read_object, write_text
from vitprune.masks import MaskError
from vitprune.pipeline.choose import chosen_method
from vitprune.pipeline.dense import measured_dense
from vitprune.pipeline.learned import METHODS
from vitprune.pipeline.measure import Measured
from vitprune.pipeline.outcome import alike, note_failure, saved_point
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.ranking import Rankings
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.processes import world
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings, Upkeep
from vitprune.report import Front, FrontPoint, draw_front, front_csv, front_json, front_markdown
from vitprune.store.read import PLAN

SWEEP, DENSE, POINTS = "sweep.json", "dense.json", "points"
REMEDY = "replace the sweep with --force"


class SweepError(VitpruneError):
    """A sweep of which points failed."""

    exit_code = 10


@dataclass(frozen=True, slots=True)
class Point:
    """What is asked of one model, beyond what is asked of all: one of the three."""

    target: Target | None = None
    weight: float | None = None  # of the cost, for masks
    rate: float | None = None  # of gates to close, for VTP

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.target, self.weight, self.rate)) != 1:
            raise TargetError("a point of a sweep needs a target, a weight of the cost or a rate, one of the three")

    @property
    def asked(self) -> str:
        """Such as "macs=0.5", "weight=2" or "rate=0.4"."""
        if self.target is not None:
            return str(self.target)
        return f"weight={self.weight:g}" if self.weight is not None else f"rate={self.rate:g}"

    @property
    def name(self) -> str:
        """Of the point's folder."""
        return self.asked.replace("=", "-")

    def of(self, base: PruneSettings) -> PruneSettings:
        """The settings of this point. Raises MaskError for those that make no sense."""
        cost = None if self.weight is None else base.learned.cost
        learned = replace(base.learned, weight=self.weight, rate=self.rate, cost=cost)
        settings = replace(base, target=self.target, learned=learned)
        if settings.method in METHODS:
            settings.without_scores()
        elif self.target is None:
            raise MaskError(
                f"{self.asked} is for masks that are trained, but the method is {base.method}; give targets"
            )
        return settings


def points_of(
    targets: Iterable[Target | str] = (), weights: Iterable[float] = (), rates: Iterable[float] = ()
) -> tuple[Point, ...]:
    """One point for each, in this order. Raises TargetError for none, for two alike, and for malformed targets."""
    points = [Point(Target.parse(t) if isinstance(t, str) else t) for t in targets]
    points += [Point(weight=w) for w in weights] + [Point(rate=r) for r in rates]
    names = [p.name for p in points]
    if not points:
        raise TargetError("a sweep needs points: give --targets, --mask-weights or --rates")
    for name in names:
        if names.count(name) > 1:
            raise TargetError(f"a sweep needs points that differ, but {name} stands there {names.count(name)} times")
    return tuple(points)


def run_sweep(
    spec: str,
    data: DataSettings,
    base: PruneSettings,
    points: Sequence[Point],
    training: TrainSettings | None,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    allow_module: str | None = None,
    force: bool = False,
    resume: bool = True,
    distill: bool = True,
    new_head: bool = False,
    upkeep: Callable[[Path], Upkeep] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Front:
    """Prunes the model that `spec` names once for each point, by `run_prune`, and writes the front into `out`.

    base: what all points have in common; its target, weight and rate do not count. upkeep: that of a run into a folder.
    command: the line that makes this call, kept for a report.
    The dense model is measured once. A point that fails is in the result, with its error, and the next one begins.

    `out` holds `points/NAME` (saved models), `front.json`, `front.csv`, `front.md` and `front.png`, written anew after
    every point. Points that are finished stay; those that were stopped go on (start over unless `resume`), and those
    that failed are tried again; further points may be asked for. `force` replaces a folder of another sweep.

    Raises StoreError when `out` belongs to something else, naming what differs; errors of the model, the data or the
    settings, which all points would meet, before anything is written.
    """
    if world() > 1:
        raise SweepError(f"a sweep runs in one process, but {world()} were launched; launch vitprune prune for each")
    settings = [point.of(base) for point in points]
    method = base.method if base.method in METHODS else chosen_method(base.method, base.calibration > 0)
    said = progress or Silent()
    folder = _Folder(out)
    check = folder.check(spec, data, base, points, training, seed, distill, new_head, force=force)
    place = resolve_device(device)
    dense = None if check.new else folder.dense()
    if dense is None:
        dense = _dense(spec, data, base, training, seed, place, new_head, allow_module, said)
    folder.begin(check, dense, command)
    title = f"{spec}, {data.spec}, {method}"
    about = {"model": spec, "data": asdict(data), "method": method, "device": place, "seed": seed}
    rankings = Rankings()
    for number, (point, chosen) in enumerate(zip(points, settings, strict=True), 1):
        where = folder.place(point)
        if folder.finished(point):
            said.line(f"point {number} of {len(points)}, {point.asked}: done before, in {where}")
            continue
        said.line(f"point {number} of {len(points)}: {point.asked}")
        try:
            run_prune(
                spec,
                data,
                chosen,
                training,
                where,
                seed=seed,
                device=device,
                allow_module=allow_module,
                resume=resume,
                distill=distill,
                new_head=new_head,
                dense=dense,
                rankings=rankings,
                upkeep=None if upkeep is None else upkeep(where),
                progress=said,
            )
        except Exception as error:  # whatever it is: the other points may go well
            said.done()
            said.line(f"point {point.asked} failed: {folder.fail(point, error)}")
        folder.write(Front(title, folder.points(points), about))
    front = Front(title, folder.points(points), about)
    folder.write(front)
    return front


def _dense(
    spec: str,
    data: DataSettings,
    base: PruneSettings,
    training: TrainSettings | None,
    seed: int,
    device: str,
    new_head: bool,
    allow_module: str | None,
    progress: Progress,
) -> Measured:
    """What is measured of the dense model, once; and proof that model and data can be had and fit."""
    how = training or (base.learned.search if base.method in METHODS else TrainSettings(seed=seed))
    opened, images = open_both(
        spec, data, how, device=device, progress=progress, new_head=new_head, allow_module=allow_module
    )
    return measured_dense(opened, images, device, progress)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a sweep was or is asked for."""

    settings: dict[str, Any]
    points: list[str]
    new: bool  # nothing of it is there yet


class _Folder:
    """A sweep's files; a point is finished when its saved folder is there, which appears at once or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, point: Point) -> Path:
        """Where the point's model is saved."""
        return self.path / POINTS / point.name

    def finished(self, point: Point) -> bool:
        """Whether it is."""
        return (self.place(point) / PLAN).is_file()

    def check(
        self,
        spec: str,
        data: DataSettings,
        base: PruneSettings,
        points: Sequence[Point],
        training: TrainSettings | None,
        seed: int,
        distill: bool,
        new_head: bool,
        *,
        force: bool,
    ) -> _Asked:
        """What is asked, when the folder is free for it. Raises StoreError otherwise; nothing is changed."""
        common = replace(base, target=None, learned=replace(base.learned, weight=None, rate=None))
        given = {
            "model": spec,
            "data": asdict(data),
            "prune": asdict(common),
            "train": None if training is None else training.to_json(),
            "seed": seed,
            "distill": distill,
            "new_head": new_head,
        }
        settings, names = json.loads(json.dumps(given)), [p.asked for p in points]
        if base.method not in METHODS:
            del settings["prune"]["learned"]
        if not (self.path / SWEEP).is_file() or force:
            check_free(self.path, force=force, marker=SWEEP)
            return _Asked(settings, names, True)
        found = _read(self.path / SWEEP)
        others = differing(found["settings"], settings)
        missing = [name for name in found["points"] if name not in names]
        if others or missing:
            what = ", ".join([*others, *(f"the point {name} is missing" for name in missing)])
            raise StoreError(
                f"output folder {self.path} holds a sweep with other settings ({what}); choose another --out, or "
                "replace it with --force"
            )
        return _Asked(settings, names, False)

    def begin(self, asked: _Asked, dense: Measured, command: str) -> None:
        """Makes the folder, in place of an old one where that was permitted."""
        if asked.new and self.path.exists():
            shutil.rmtree(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            about = {"settings": asked.settings, "points": asked.points, "command": command}
            write_text(self.path / SWEEP, json.dumps(about, indent=1))
            write_text(self.path / DENSE, json.dumps(dense.to_json()))
            (self.path / POINTS).mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error

    def dense(self) -> Measured | None:
        """What was measured of the dense model before."""
        path = self.path / DENSE
        return Measured.from_json(_read(path)) if path.is_file() else None

    def fail(self, point: Point, error: Exception) -> str:
        """Keeps the error, and gives it in one line."""
        return note_failure(self._failure(point), {"asked": point.asked}, error)

    def _failure(self, point: Point) -> Path:
        return self.path / POINTS / f"{point.name}.failed.json"

    def points(self, points: Sequence[Point]) -> tuple[FrontPoint, ...]:
        """All that are finished or failed."""
        found: list[FrontPoint] = []
        for point in points:
            if self.finished(point):
                self._failure(point).unlink(missing_ok=True)
                found.append(saved_point(self.place(point), point.name, point.asked, REMEDY))
            elif self._failure(point).is_file():
                found.append(FrontPoint(point.name, point.asked, error=_read(self._failure(point))["error"]))
        return alike(found)

    def write(self, front: Front) -> None:
        """The front's files."""
        write_text(self.path / "front.json", json.dumps(front_json(front), indent=1) + "\n")
        write_text(self.path / "front.csv", front_csv(front))
        write_text(self.path / "front.md", front_markdown(front, "front.png"))
        draw_front(front, self.path / "front.png")


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, REMEDY)
