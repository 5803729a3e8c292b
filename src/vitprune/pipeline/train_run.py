"""Training without pruning: `vitprune train` (from scratch) and `vitprune finetune` (from trained weights)."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from vitprune import models, store
from vitprune.files import check_free
from vitprune.pipeline.measure import Measured, answered, measured, measured_split, say
from vitprune.pipeline.prune_run import PruneResult
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.pipeline.stages import WorkFolder
from vitprune.pipeline.teacher import open_teacher
from vitprune.pipeline.team import Team
from vitprune.pipeline.versions import versions
from vitprune.plan import Plan, identity
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings, Upkeep, fit
from vitprune.store.read import PLAN
from vitprune.trace import trace


def run_train(
    spec: str,
    data: DataSettings,
    training: TrainSettings,
    out: Path,
    *,
    from_scratch: bool,
    device: str = "auto",
    allow_module: str | None = None,
    force: bool = False,
    resume: bool = True,
    new_head: bool = False,
    teacher: str | None = None,
    upkeep: Upkeep | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Trains the model that `spec` names and saves it at `out`.

    from_scratch: start from the library's initial weights, with a head for the data's classes.
    force, resume: as for `run_prune`. teacher: MODEL whose scores are learned beside the labels, with the weight and
    temperature in `training`. upkeep: checkpoints within epochs, and trackers.

    Raises a VitpruneError that says what is wrong; nothing is then at `out` that was not there before.
    """
    check_free(out, force=force, marker=PLAN)
    training.check_teacher(teacher is not None)
    place = resolve_device(device)
    team = Team(place)
    said = progress if progress is not None and team.main else Silent()
    with team.main_first():
        opened, images = open_both(
            spec,
            data,
            training,
            device=place,
            progress=said,
            new_head=new_head or from_scratch,
            weights=not from_scratch,
            allow_module=allow_module,
        )
    wanted = {"model": spec, "data": asdict(data), "train": training.to_json(), "from_scratch": from_scratch}
    if teacher:
        wanted["teacher"] = teacher
    with team.main_first():
        work = WorkFolder.open(out, wanted, resume=resume) if team.main else WorkFolder.join(out)
    graph = trace(opened.model, (models.example(opened.loaded.preprocessing).to(place),))
    test, found = measured_split(images), list[Measured]()
    macs = graph.cost()[0]
    if not from_scratch and team.main:
        found.append(measured("before", opened.model, macs, test, place, said))
        said.line(say(found[-1].row))
    taught = None
    if teacher:
        taught = open_teacher(
            teacher,
            opened.loaded,
            images.classes,
            device=place,
            seed=training.seed,
            allow_module=allow_module,
            scores=bool(training.distill_weight) or not training.feature_weight,
        )
    history = fit(
        opened.model,
        images.train,
        images.val,
        training,
        device=place,
        teacher=taught,
        checkpoint_dir=work.path / "training",
        upkeep=upkeep,
        progress=said,
    ).to_json()
    plan: Plan = opened.plan or replace(identity(graph), source=opened.loaded.source.to_json(), versions=versions())
    if not team.main:
        team.wait()
        return PruneResult(out, plan, (), history)
    name = "trained" if from_scratch else "fine-tuned"
    found.append(measured(name, opened.model, macs, test, place, said))
    said.line(say(found[-1].row))
    metrics = {"rows": [m.row.to_json() for m in found], "data": asdict(data), "device": place}
    metrics |= answered(found[0].answers, found[-1].answers)
    metrics |= {"training": training.to_json(), "history": history}
    if teacher:
        metrics["teacher"] = teacher
    store.save(
        out, opened.model, plan, opened.loaded.preprocessing, classes=images.classes, metrics=metrics, force=force
    )
    work.remove()
    team.wait()
    return PruneResult(out, plan, tuple(m.row for m in found), history)
