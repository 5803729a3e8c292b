"""The whole of `vitprune prune`: trace, prune, fine-tune, measure, save; resumes after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitprune import store
from vitprune.files import check_free
from vitprune.pipeline.choose import chosen_method, chosen_scope
from vitprune.pipeline.learned import METHODS
from vitprune.pipeline.measure import Measured, answered
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.prune_stages import SEARCHED, Stages
from vitprune.pipeline.ranking import Rankings
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.pipeline.stages import WorkFolder
from vitprune.pipeline.team import Team
from vitprune.plan import Plan
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings, Upkeep
from vitprune.report import Row
from vitprune.store.read import PLAN


@dataclass(frozen=True, slots=True, eq=False)
class PruneResult:
    """What a run gave."""

    folder: Path
    plan: Plan
    rows: tuple[Row, ...]  # dense, pruned, refitted and fine-tuned where there was that
    history: Mapping[str, Any] | None


def run_prune(
    spec: str,
    data: DataSettings,
    settings: PruneSettings,
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
    dense: Measured | None = None,
    rankings: Rankings | None = None,
    upkeep: Upkeep | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> PruneResult:
    """Prunes the model that `spec` names and saves it at `out`; `training` None leaves fine-tuning out.

    distill: fine-tune with the dense model as teacher.
    force, resume: replace an output folder; go on with the work folder that a stopped run of the same settings left.
    upkeep: checkpoints within epochs of fine-tuning, and trackers. dense: what was measured of the dense
    model before. rankings: those of other runs of the same study, gone on with. command: the line that makes this call,
    kept for a report.

    Raises a VitpruneError that says what is wrong; nothing is then at `out` that was not there before.
    """
    check_free(out, force=force, marker=PLAN)
    if training is not None:
        training.check_teacher(distill and not new_head)
    how = training or TrainSettings(seed=seed)
    if settings.method in METHODS:
        settings = replace(settings, refit=settings.refit and not new_head).without_scores()
        how = training or settings.learned.search
    else:
        method = chosen_method(settings.method, settings.calibration > 0)
        settings = replace(settings, method=method, scope=chosen_scope(settings.scope, method))
    place = resolve_device(device)
    team = Team(place)
    said = progress if progress is not None and team.main else Silent()
    with team.main_first():
        opened, images = open_both(
            spec,
            data,
            how,
            device=place,
            progress=said,
            new_head=new_head,
            allow_module=allow_module,
            calibration=settings.calibration,
            blend=settings.blend,
        )
    wanted = {
        "model": opened.loaded.source.to_json() if opened.plan is None else spec,
        "data": asdict(data),
        "prune": settings.to_json(),
        "train": None if training is None else training.to_json(),
        "seed": seed,
        "distill": distill,
        "new_head": new_head,
    }
    with team.main_first():
        work = WorkFolder.open(out, wanted, resume=resume) if team.main else WorkFolder.join(out)
    taught = distill and not new_head
    run = Stages(opened, images, settings, seed, place, work, said, team, taught, data, rankings)
    if dense is not None and team.main:
        work.finish("dense", dense.to_json())
    with team.main_first():
        run.dense()
    if settings.method in METHODS:
        run.learn(upkeep)  # all together
    with team.main_first():  # the others then find everything done, as after a kill
        model = run.prune()
    history = run.tune(model, training, opened.model if taught else None, upkeep)
    if not team.main:
        team.wait()
        return PruneResult(out, run.plan, tuple(run.rows), history)
    plan, rows = run.close(model)
    metrics = {
        "rows": [r.to_json() for r in rows],
        "data": asdict(data),
        "device": place,
        **answered(run.answers[0], run.answers[-1]),
        "run": wanted,
    }
    metrics |= {"command": command} if command else {}
    metrics |= {"search": searched} if (searched := work.result(SEARCHED)) is not None else {}
    metrics |= {} if training is None else {"training": training.to_json(), "history": history}
    store.save(out, model, plan, opened.loaded.preprocessing, classes=images.classes, metrics=metrics, force=force)
    work.remove()
    team.wait()
    return PruneResult(out, plan, tuple(rows), history)
