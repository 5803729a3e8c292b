"""`vitprune search`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune.cli import options as o
from vitprune.cli.prune import prune
from vitprune.cli.request import defaults_of, request, with_options_of
from vitprune.cli.run import command_line, print_json
from vitprune.errors import DataError
from vitprune.normal import Z95

# of `vitprune prune`: what a search decides itself, and what only trained masks have
OTHERS = (
    *("target", "method", "ratio", "ratios_file", "steps", "reduction", "normalise", "blend", "epochs", "out", "force"),
    *("mask_epochs", "mask_warmup", "mask_patience", "mask_lr", "search_lr", "mask_weight", "mask_cost", "sharing"),
    *("freeze", "mask_start", "relaxation", "rate", "l1", "closings"),
)


@with_options_of(prune, without=OTHERS)
def search(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="As of vitprune prune; with --pick the folder of a search.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="As of vitprune prune.", show_default=False)
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Points of top-1 that may be lost: the smallest model is wanted.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="METRIC=VALUE", help="What it may cost: the best model is wanted.", show_default=False),
    ] = None,
    cost: Annotated[str, typer.Option(help="With --max-drop, what is to be small: macs, params or latency.")] = "macs",
    confident: Annotated[
        bool, typer.Option("--confident", help="The upper end of the drop's 95 % interval must hold it.")
    ] = False,
    method: Annotated[
        str, typer.Option(help="ratio-search, sensitivity, or a study of Optuna: bayes, nsga2.")
    ] = "ratio-search",
    per: Annotated[
        str,
        typer.Option(help="ratio-search: a share for each module (attention, MLP), kind, or block (modules of each)."),
    ] = "module",
    fractions: Annotated[
        str, typer.Option(metavar="F,F,...", help="With sensitivity: what is removed of each kind in each block.")
    ] = "0.25,0.5,0.75",
    score: Annotated[str, typer.Option(help="Of units; see --method of vitprune prune.")] = "auto",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Probes at most; of a study, of all workers.", show_default="no limit")
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(help="Minutes that probes may take; of a study, of all workers.", show_default="no limit"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Of a study that many workers share: sqlite:///PATH, journal:PATH or postgresql://USER@HOST/DATABASE.",
            show_default="study.db in the folder",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the study in its storage.", show_default="goal and method")
    ] = None,
    probe_epochs: Annotated[int, typer.Option(min=0, help="Epochs of training in every probe.")] = 0,
    val_images: Annotated[
        int | None, typer.Option(min=1, help="Validation images that probes are judged by.", show_default="all")
    ] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed/--no-fixed", help="Also try fixed ratios (uniform, cascade) under the same goal.")
    ] = True,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC<VALUE",
            help="No search: save another point of the search in the folder MODEL, such as 'macs<0.4' or 'drop<1'.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning of the model that is found.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the search. [default: runs/NAME-search; with --pick: in the search's folder]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of a search, models and all.")] = False,
    **rest: Any,
) -> None:
    """Find the smallest model within a drop of accuracy, or the best one at a budget, and save it."""
    from vitprune.allocate.target import Target
    from vitprune.pipeline.search_run import run_pick, run_search
    from vitprune.pipeline.search_settings import SearchSettings

    absent = defaults_of(prune, OTHERS) | {"method": score, "epochs": epochs, "target": target}
    run = request(model=model, data=data or "", **absent | rest)

    def upkeep(folder: Path) -> Any:
        return o.upkeep(rest["checkpoint_every"], rest["tracker"], rest["log_dir"], folder)

    how = {name: value for name, value in run.how.items() if name in ("device", "allow_module", "distill", "progress")}
    how |= {"force": force, "resume": rest["resume"], "upkeep": upkeep}
    if pick is not None:
        _show_pick(run_pick(Path(model), pick, run.training, out, **how), rest["json"])
        return
    if data is None:
        raise DataError("a search needs images: give --data")
    base = run.settings
    probe = request(model=model, data=data, **absent | rest | {"epochs": probe_epochs}).training
    settings = SearchSettings(
        max_drop,
        None if target is None else Target.parse(target),
        cost,
        confident,
        method,
        per,  # type: ignore[arg-type]  # checked there
        o.numbers("--fractions", fractions),
        score=score,
        scope=base.scope,
        kinds=base.kinds,
        round_to=base.round_to,
        minimum=base.minimum,
        protect=base.protect,
        rotate=base.rotate,
        refit=base.refit,
        calibration=base.calibration,
        latency_batch=base.latency_batch,
        threads=base.threads,
        probe=probe,
        trials=trials,
        minutes=budget_minutes,
        baselines=fixed,
        storage=storage,
        study=study,
    )
    place = out or o.default_out(model, "search")
    images = replace(run.data, val_images=val_images)
    more = {"seed": rest["seed"], "new_head": rest["new_head"]}
    result = run_search(model, images, settings, run.training, place, command=command_line(), **how, **more)
    _show(result, rest["json"])


def _show(result: Any, json: bool) -> None:
    from vitprune.report import print_rows, print_sensitivity, sensitivity_json

    curves = {} if result.curves is None else {"sensitivity": sensitivity_json(result.curves.rows())}
    fixed = {name: None if p is None else p.to_json() for name, p in result.fixed.items()}
    rows = [] if result.model is None else [row.to_json() for row in result.model.rows]
    if json:
        found = {"goal": str(result.goal), "found": result.found.to_json(), "fixed": fixed, "dense": result.dense_top1}
        print_json({"out": str(result.folder), **found, "probes": len(result.probes), "rows": rows} | curves)
        return
    if result.curves is not None:
        print_sensitivity(result.curves.rows(), "sensitivity")
    if result.model is None:
        print(f"best so far: {_line(result.found, result.goal.cost)}; the worker that ended the study saves the model")
        return
    print_rows(result.model.rows, f"{result.goal}")
    cost, found = result.goal.cost, result.found
    print(f"found: {_line(found, cost)}, on validation images (dense {100 * result.dense_top1:.2f} %)")
    for name, probe in result.fixed.items():
        versus = "" if probe is None else f"; found has {found.costs[cost] / probe.costs[cost]:.1%} of its {cost}"
        print(f"fixed ratio, {name}: {'none holds the goal' if probe is None else _line(probe, cost) + versus}")
    print(f"saved: {result.model.folder}  (vitprune.load({str(result.model.folder)!r})); {len(result.probes)} probes")
    also = "" if result.curves is None else "; sensitivity.csv, .json, .md, .png"
    print(f"in {result.folder}: probes.csv, .md, .png{also}")


def _show_pick(result: Any, json: bool) -> None:
    from vitprune.report import print_rows

    if json:
        print_json({"out": str(result.folder), "rows": [row.to_json() for row in result.rows]})
        return
    print_rows(result.rows)
    print(f"saved: {result.folder}  (vitprune.load({str(result.folder)!r}))")


def _line(probe: Any, cost: str) -> str:
    return f"{cost}={probe.costs[cost]:.4f}, {-probe.lost.points:+.2f} ± {Z95 * probe.lost.error:.2f} points"
