"""What the folders of finished runs hold, as values for a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitprune import store
from vitprune.errors import StoreError, VitpruneError
from vitprune.files import read_object
from vitprune.models.source import ModelSource
from vitprune.pipeline.cell_folder import CONFIG, FAILED, TIMES
from vitprune.pipeline.compare_folder import COMPARE
from vitprune.pipeline.dg_folder import DgFolder
from vitprune.pipeline.outcome import alike, saved_point
from vitprune.pipeline.pick import PROBE
from vitprune.pipeline.search_folder import FOUND, PICKS, PROBES, SEARCH
from vitprune.pipeline.stages import RUN
from vitprune.pipeline.sweep_run import POINTS, SWEEP
from vitprune.report import Answers, CellResult, Comparison, FrontPoint, Hits, Row, SensitivityRow
from vitprune.report.domains import DomainStudy
from vitprune.report.domains_json import domains_from_json
from vitprune.report.words import printable
from vitprune.search import Probe
from vitprune.store.read import PLAN

AGAIN = "make the run again with --force"
SENSITIVITY = "sensitivity.json"
STUDY, TABLE = DgFolder.marker, "table.json"


@dataclass(frozen=True, slots=True, eq=False)
class SavedModel:
    """One saved model of a run."""

    name: str  # unlike those of the other models on the page
    point: FrontPoint
    contents: store.Contents
    dense_answers: Answers | None = None
    answers: Answers | None = None
    hits: Hits | None = None
    method: str = ""  # of a comparison

    @property
    def dense(self) -> Row:
        """The model that it comes from; itself where nothing was measured before."""
        return self.point.rows[0]

    @property
    def last(self) -> Row:
        """What was saved."""
        return self.point.last

    @property
    def pruned(self) -> bool:
        """Whether it is smaller than what it comes from."""
        return self.last.macs < self.dense.macs or self.last.params < self.dense.params

    @property
    def metrics(self) -> Mapping[str, Any]:
        """All that was measured and set, as JSON values."""
        return self.contents.metrics

    def like(self, other: SavedModel) -> bool:
        """Whether they compare: of a dense model of the same size, on the same images or by the same DATA settings."""
        mine, its = ((m.dense.macs, m.dense.params, m.last.images) for m in (self, other))
        same = self.hits is not None and other.hits is not None and self.hits.images == other.hits.images
        return mine == its and (same or self.metrics.get("data") == other.metrics.get("data"))


@dataclass(frozen=True, slots=True, eq=False)
class ReadRun:
    """What one folder holds."""

    path: Path
    kind: str  # "prune", "train", "sweep", "search", "compare" or "dg"
    model: str
    data: str
    command: str  # "" where it was not kept
    models: tuple[SavedModel, ...]
    settings: Mapping[str, Any]
    failed: tuple[tuple[str, str], ...] = ()  # what was asked, the error
    left: tuple[str, ...] = ()  # what was asked and is not finished
    sensitivity: tuple[SensitivityRow, ...] = ()
    probes: tuple[Probe, ...] = ()
    goals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a search
    comparison: Comparison | None = None
    domains: DomainStudy | None = None

    @property
    def name(self) -> str:
        """The folder's."""
        return printable(self.path.resolve().name)


def read_run(path: Path, label: str) -> ReadRun:
    """The run in a folder that prune, train, finetune, sweep, search, compare or dg wrote; `label`: its name there.

    Raises StoreError for anything else, for a run of which nothing is finished yet, and for damaged files.
    """
    work = path.absolute().with_name(path.absolute().name + ".work")
    unfinished = next((p for p in (path, work) if (p / RUN).is_file()), None)
    if unfinished is not None and not (path / PLAN).is_file():
        raise StoreError(
            f"a report needs a finished run, but {path} was stopped on its way ({unfinished} holds what was done); "
            "the command that began it goes on there"
        )
    if not path.is_dir():
        raise StoreError(
            f"a report needs the folder of a run, but {path} is {'a file' if path.exists() else 'not there'}"
        )
    readers = {PLAN: _pruned, SWEEP: _sweep, SEARCH: _search, COMPARE: _compare, STUDY: _dg}
    for marker, reader in readers.items():
        if (path / marker).is_file():
            with _damage(path):
                found = reader(path, label)
            if not found.models and not found.probes and (found.domains is None or not found.domains.finished):
                why = f": {found.failed[0][0]}: {found.failed[0][1]}" if found.failed else ""
                raise StoreError(
                    f"a report needs a finished model, but {path} has none yet{why}; the command that began it goes "
                    f"on: {found.command or 'vitprune ' + found.kind + ' ... --out ' + str(path)}"
                )
            return found
    raise StoreError(
        f"a report needs the folder of a run, but {path} holds none of {', '.join(readers)}; give what --out was of "
        "vitprune prune, finetune, train, sweep, search, compare, dg or demo"
    )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What was edited or cut off becomes an error that says where."""
    try:
        yield
    except VitpruneError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        what = f"{type(error).__name__}: {error}"
        raise StoreError(f"the run in {path} is damaged, or was edited ({what}); {AGAIN}") from error


def _model(folder: Path, name: str, asked: str = "", method: str = "") -> SavedModel:
    name, asked = printable(name), printable(asked)
    with _damage(folder):
        contents = store.read(folder)
        wanted = asked or ", ".join(f"{k}={v:g}" for k, v in contents.plan.asked.items()) or "fixed shares"
        if "rows" not in contents.metrics:
            raise StoreError(f"a report needs what was measured, but {folder} has no rows in metrics.json; {AGAIN}")
        point = saved_point(folder, name, wanted, AGAIN)
        given, right = contents.metrics.get("answers") or {}, contents.metrics.get("right")
        dense, last = (None if n not in given else Answers.from_json(given[n]) for n in ("dense", "saved"))
        hits = Hits.from_json(right) if right is not None else None if last is None else last.hits()
        return SavedModel(name, point, contents, dense, last, hits, method)


def _pruned(path: Path, label: str) -> ReadRun:
    model = _model(path, label)
    made = dict(model.metrics.get("run") or {})
    settings = made or {"method": model.contents.plan.method, **model.contents.plan.settings}
    if not made and "training" in model.metrics:
        settings["train"] = model.metrics["training"]
    kind = "prune" if model.pruned else "train"
    return ReadRun(path, kind, _source(model), _data(model), str(model.metrics.get("command", "")), (model,), settings)


def _source(model: SavedModel) -> str:
    made = (model.metrics.get("run") or {}).get("model")
    return made if isinstance(made, str) else str(_named(model.contents.plan.source))


def _named(source: Mapping[str, Any]) -> ModelSource:
    return ModelSource.from_json(source).without("num_classes")


def _data(model: SavedModel) -> str:
    return str((model.metrics.get("data") or {}).get("spec", ""))


def _sweep(path: Path, label: str) -> ReadRun:
    about = read_object(path / SWEEP, AGAIN)
    models, failed, left = [], [], []
    for asked in about["points"]:
        name = asked.replace("=", "-")
        failure = path / POINTS / f"{name}.failed.json"
        if (path / POINTS / name / PLAN).is_file():
            models.append(_model(path / POINTS / name, f"{label} {asked}".strip(), asked))
        elif failure.is_file():
            failed.append((asked, str(read_object(failure, AGAIN)["error"])))
        else:
            left.append(asked)
    asked_of = about["settings"]
    return ReadRun(
        path, "sweep", str(asked_of["model"]), str(asked_of["data"]["spec"]), str(about.get("command", "")),
        tuple(models), asked_of, tuple(failed), tuple(left),
    )  # fmt: skip


def _search(path: Path, label: str) -> ReadRun:
    asked = read_object(path / SEARCH, AGAIN)
    goals = read_object(path / FOUND, AGAIN) if (path / FOUND).is_file() else {}
    folders = sorted(p.parent for place in ("models", PICKS) for p in (path / place).glob(f"*/{PLAN}"))
    models = tuple(_model(p, f"{label} {p.name}".strip(), _goal(p)) for p in folders)
    rows: list[SensitivityRow] = []
    if (path / SENSITIVITY).is_file():
        rows = [SensitivityRow(**entry) for entry in json.loads((path / SENSITIVITY).read_text("utf-8"))]
    commands = [str(goal["command"]) for goal in goals.values() if goal.get("command")]
    settings = {name: value for name, value in asked.items() if name != "groups"}
    return ReadRun(
        path, "search", str(asked["model"]), str(asked["data"]["spec"]), "\n".join(dict.fromkeys(commands)), models,
        settings, sensitivity=tuple(rows), probes=_probes(path / PROBES), goals=goals,
    )  # fmt: skip


def _goal(folder: Path) -> str:
    """What a search or a pick wanted of a model."""
    if not (folder / PROBE).is_file():
        return ""
    about = read_object(folder / PROBE, AGAIN)
    return str(about.get("search", about.get("picked", ""))).removesuffix(", on the validation images")


def _probes(path: Path) -> tuple[Probe, ...]:
    """The probes on whole lines; unlike `Record` nothing is put right in the file, which a search may be at."""
    if not path.is_file():
        return ()
    lines = path.read_text("utf-8").splitlines(keepends=True)
    return tuple(Probe.from_json(json.loads(line)) for line in lines if line.endswith("\n"))


def _compare(path: Path, label: str) -> ReadRun:
    about = read_object(path / COMPARE, AGAIN)
    models: dict[str, SavedModel] = {}
    found: list[tuple[str, Mapping[str, Any], FrontPoint]] = []
    for key, cell in about["cells"].items():
        place = path / "runs" / key
        point = FrontPoint(key, cell["asked"])
        if (place / "model" / PLAN).is_file():
            name = f"{label} {cell['method']} {cell['asked']} seed {cell['seed']}".strip()
            models[key] = _model(place / "model", name, cell["asked"], cell["method"])
            point = models[key].point
        elif (place / FAILED).is_file():
            point = FrontPoint(key, cell["asked"], error=str(read_object(place / FAILED, AGAIN)["error"]))
        found.append((key, cell, point))
    points = alike([point for _, _, point in found])
    results = []
    for (key, cell, _), point in zip(found, points, strict=True):
        times, hits = path / "runs" / key / TIMES, models[key].hits if key in models else None
        minutes = sum(read_object(times, AGAIN)["seconds"]) / 60 if times.is_file() else None
        results.append(CellResult(cell["method"], cell["asked"], cell["seed"], key, point, hits, minutes))
    methods, targets = (tuple(dict.fromkeys(c[n] for _, c, _ in found)) for n in ("method", "asked"))
    identity = about["identity"]
    title = f"{identity['model']}, {identity['data']['spec']}, {about['epochs']} epochs"
    both = Comparison(title, methods, targets, about["baseline"], tuple(results), identity)
    settings = {k: v for k, v in about.items() if k not in ("cells", "command")}
    settings["seeds"] = list(dict.fromkeys(c["seed"] for _, c, _ in found))
    if (path / CONFIG).is_file():
        settings["config.toml"] = (path / CONFIG).read_text("utf-8")
    return ReadRun(
        path, "compare", str(identity["model"]), str(identity["data"]["spec"]), str(about.get("command", "")),
        tuple(models.values()), settings, tuple((c.name, c.point.error) for c in both.failed),
        tuple(c.name for c in both.cells if c.status == "open"), comparison=both,
    )  # fmt: skip


def _dg(path: Path, label: str) -> ReadRun:
    if not (path / TABLE).is_file():
        raise StoreError(f"a report needs a finished cell, but {path} has none yet; the command that began it goes on")
    study = domains_from_json(read_object(path / TABLE, "give the command of the study again, which writes it anew"))
    data = study.about["data"]["spec"]
    failed = tuple((c.name, c.error) for c in study.failed)
    left = tuple(c.name for c in study.cells if c.status == "open")
    return ReadRun(
        path, "dg", ", ".join(study.models), str(data), "", (), dict(study.about), failed, left, domains=study
    )  # fmt: skip


def labels_of(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many of the folders above as tell it from the others."""
    whole = [p.resolve().parts for p in paths]
    for depth in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return [printable(name) for name in names]
    return [printable(str(p)) for p in paths]
