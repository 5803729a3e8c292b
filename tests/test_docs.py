"""Every Python block of README and docs runs, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from vitprune.cli.app import app
from vitprune.score import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vitprune.score.registry.METHODS", dict(METHODS))  # what a block registers goes with it
    scope: dict[str, object] = {}
    exec(compile(block, "block", "exec"), scope)
    assert "vitprune" in scope


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda p: p.parent.name + p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_benchmark_and_its_pages_are_listed() -> None:
    folder = ROOT / "benchmarks"
    listed = (folder / "README.md").read_text()
    scripts = [path.name for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(scripts) > 15
    missing = [name for name in scripts if f"`{name}`" not in listed]
    missing += [page.name for page in (folder / "results").glob("*.md") if f"(results/{page.name})" not in listed]
    assert not missing


LINES = [
    pytest.param(line, id=f"{page.name}-{i}")
    for page in PAGES
    for i, line in enumerate(re.findall(r"^vitprune .*$", page.read_text(), re.MULTILINE))
]


@pytest.mark.parametrize("line", LINES)
def test_commands_and_options_exist(line: str) -> None:
    """Every documented command line is one that the parser takes, values and all."""
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    context = command.make_context("vitprune", [name], resilient_parsing=True)
    found = command.get_command(context, name)
    assert found is not None, f"no command {name}"
    found.make_context(name, arguments)


def test_every_training_setting_is_documented() -> None:
    from vitprune.recipes import imagenet_deit
    from vitprune.recover import TrainSettings

    page = (ROOT / "docs" / "training.md").read_text()
    first_cells = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [name for name in TrainSettings().to_json() if f"`{name}`" not in first_cells] == []
    assert imagenet_deit("small").command("/data/imagenet", "deit-s") in page
