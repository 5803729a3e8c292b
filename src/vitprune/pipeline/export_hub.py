"""A folder to share on the Hugging Face hub: what `save` writes, with a model card, and nothing of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from vitprune import models, store
from vitprune.evaluate import file_size
from vitprune.export import ExportError, FormatInfo, Parity, check_parity, compare
from vitprune.files import new_folder
from vitprune.models import ModelSource
from vitprune.pipeline.export_settings import HUB, Card, ExportResult, ExportSettings
from vitprune.pipeline.opening import Opened, rebuild
from vitprune.pipeline.versions import versions
from vitprune.plan import Plan, identity
from vitprune.progress import Progress
from vitprune.store.hub import REPO
from vitprune.store.read import CARD, PLAN
from vitprune.trace import trace

HUB_INFO = FormatInfo(HUB, "a folder to share on the Hugging Face hub, which vitprune.load reads", "")


def check_card(card: Card, settings: ExportSettings) -> None:
    """Pass when the words of a card have the form that the hub wants. Raises ExportError otherwise."""
    for option, value in (("--repo", card.repo), ("--base-model", card.base_model)):
        if value is not None and not REPO.fullmatch(value):
            raise ExportError(f"{option} must be OWNER/NAME as on the hub, but got {value!r}")
    if card.license is not None and not card.license.replace("-", "").replace(".", "").isalnum():
        raise ExportError(f"--license must be an identifier such as apache-2.0 or mit, but got {card.license!r}")
    if settings.batch is not None:
        raise ExportError(f"--batch is for files that other runtimes run; --format {HUB} takes any number of images")


def export_hub(
    opened: Opened,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    what: str,
    out: Path,
    card: Card,
    *,
    classes: tuple[str, ...],
    data: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress,
) -> ExportResult:
    """The folder, loaded again and compared on `batches` before it is kept.

    what: the images in words; data: the name of their set, as others may see it; metrics: what the folder that the
    model came from holds.

    Raises ExportError when what is loaded answers otherwise, StoreError when `out` is in use.
    """
    plan, what = public_plan(opened, card), what if data is None else f"validation images of {data}"
    numbers = public(dict(metrics or {}))
    about, notes = facts(opened, card)
    with new_folder(out, force=force, marker=PLAN) as work:
        store.save(work, opened.model, plan, opened.loaded.preprocessing, classes=classes, metrics=numbers)
        parity = compare(opened.model, _run(store.load(work, rebuild)), batches, progress=progress)
        check_parity(parity, HUB_INFO.tolerance, None)
        text = _card(card.repo or out.name, plan, opened, classes, numbers, parity, what, data, about)
        (work / CARD).write_text(text, encoding="utf-8")
        size = file_size(work)
    return ExportResult(out, "", HUB, "float32", None, size, parity, what, (), notes, about)


def public_plan(opened: Opened, card: Card) -> Plan:
    """The model's plan, or the one that keeps everything; its source names no file of this machine."""
    example = (models.example(opened.loaded.preprocessing),)
    plan = opened.plan or replace(identity(trace(opened.model, example)), versions=versions())
    source = opened.loaded.source.without("checkpoint")
    if source.kind == "hf" and Path(source.name).expanduser().exists():
        source = ModelSource(
            source.kind, card.base_model or Path(source.name).expanduser().resolve().name, source.options
        )
    return replace(plan, source=source.to_json())


def public(value: Any) -> Any:
    """A JSON value whose paths are cut down to their last part."""
    if isinstance(value, str):
        kind, colon, rest = value.partition(":")
        if colon and kind.isalnum() and rest.startswith(("/", "~")):
            return f"{kind}:{Path(rest).name}"
        return Path(value).name if value.startswith(("/", "~")) else value
    if isinstance(value, Mapping):
        return {key: public(v) for key, v in value.items()}
    return [public(v) for v in value] if isinstance(value, list | tuple) else value


def facts(opened: Opened, card: Card) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """license and base_model as far as they are given or known, and notes on what is not."""
    source, known = opened.loaded.source, dict[str, str | None]()
    if source.kind == "timm" and source.options.get("pretrained"):
        config: Mapping[str, Any] = getattr(opened.model, "pretrained_cfg", None) or {}
        hub = str(config.get("hf_hub_id") or "")
        name = f"{hub}{config.get('architecture')}.{config.get('tag')}" if hub.endswith("/") else hub
        known = {"license": config.get("license"), "base_model": name or None}
    elif source.kind == "hf":
        folder = Path(source.name).expanduser()
        local = folder.is_dir()
        known = {"license": _license_in(folder / CARD), "base_model": None if local else source.name}
    elif source.kind == "shipped":
        known = {"license": "apache-2.0"}
    found = {"license": card.license or known.get("license"), "base_model": card.base_model or known.get("base_model")}
    notes = []
    if not found["license"]:
        notes.append(
            "the licence of the base model is not known here, and the card states none; give it with --license"
        )
    if source.kind == "module":
        notes.append(f"who loads it needs the code of {source.name}, and must allow it by name")
    return found, tuple(notes)


def _license_in(readme: Path) -> str | None:
    """The licence in the front matter of a model card."""
    if not readme.is_file():
        return None
    for line in readme.read_text(encoding="utf-8", errors="replace").splitlines()[1:60]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("\"'") or None
    return None


def _run(model: nn.Module) -> Any:
    def runner(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.no_grad():
            scores: npt.NDArray[Any] = models.logits(model(torch.from_numpy(images))).numpy()
        return scores

    return runner


def _card(
    name: str,
    plan: Plan,
    opened: Opened,
    classes: tuple[str, ...],
    metrics: Mapping[str, Any],
    parity: Parity,
    what: str,
    data: str | None,
    about: Mapping[str, str | None],
) -> str:
    """The card's text: front matter from what was measured, and what the export itself measured."""
    rows = metrics.get("rows") or [{}]
    measured = metrics.get("data")
    trained_on = measured.get("spec") if isinstance(measured, Mapping) else None
    top1: dict[str, float] = {}
    if trained_on and rows[-1].get("top1") is not None:
        top1["test"] = float(rows[-1]["top1"])
    if parity.top1 is not None and (trained_on is None or data == trained_on):
        top1["validation"] = parity.top1
    front = store.front_matter(
        name.rpartition("/")[2],
        license=about["license"],
        base_model=about["base_model"],
        data=trained_on or data,
        top1=top1,
        classifier=opened.loaded.num_classes > 0,
    )
    more = [
        "## Shared",
        "",
        "Saved, loaded again, and compared with the model that was saved: scores differ by at most",
    ]
    more += [f"{parity.largest:.1e} of the largest on {parity.images} {what}."]
    if parity.top1 is not None:
        more += [f"Top-1 of the loaded model on them: {100 * parity.top1:.2f} %."]
    place = f"hub:{name}" if "/" in name else name
    shown = name.rpartition("/")[2]
    return store.model_card(
        shown, plan, opened.loaded.preprocessing, metrics, classes, place=place, front=front, more=more
    )
