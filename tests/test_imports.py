"""The layers: imports run downwards only, and light entries stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitprune

ROOT = Path(vitprune.__file__).parent
LAYERS = (
    {"digest", "preprocessing", "processes", "progress", "markdown", "shortage"}
    | {"arrays", "compose", "differences", "errors", "exchange", "files", "modes", "normal", "plan", "planjson"},
    {"trace", "models", "data"},
    {"calibrate"},
    {"score", "allocate", "rotate", "shrink", "recover", "evaluate", "export", "store", "report"},
    {"refit", "latency", "recipes"},
    {"masks", "search"},
    {"pipeline"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "vitprune":
                found |= {f"vitprune.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
    return {name.split(".")[1] for name in found if name.startswith("vitprune.")}


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.name not in ("__init__.py", "__main__.py"))


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = owner(path)
    assert own in LEVEL, f"{own} stands in no layer"
    for other in imports(path) - {own}:
        assert other in LEVEL, f"{other} stands in no layer"
        if LEVEL[own] == 0:
            assert LEVEL[other] == 0, f"{path} (base) imports {other}"
        else:
            assert LEVEL[other] < LEVEL[own], f"{path} imports its sibling or something above: {other}"


def test_every_stage_has_its_place():
    assert {owner(p) for p in FILES} <= set(LEVEL)
    assert {"trace", "score", "allocate", "store", "pipeline", "cli"} <= {owner(p) for p in FILES}


def test_a_type_checking_guard_is_never_needed():
    assert [p for p in FILES if "TYPE_CHECKING" in p.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("code", ["import vitprune; vitprune.__version__; dir(vitprune)", "import vitprune.cli"])
def test_light_entries_import_nothing_heavy(code):
    heavy = {"torch", "timm", "transformers", "matplotlib", "optuna"}
    script = f"import sys\n{code}\nprint(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert run.stdout.strip() == "[]"


def test_optuna_is_loaded_by_studies_alone():
    script = "import sys, vitprune.search, vitprune.pipeline.search_run\nprint('optuna' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["prune", "--help"], ["demo", "-h"], []])
def test_help_answers_without_torch(arguments):
    script = (
        "import sys, vitprune.cli\n"
        f"sys.argv = ['vitprune', *{arguments!r}]\n"
        "try:\n    vitprune.cli.main()\n"
        "except SystemExit as e:\n    print('CODE', e.code, 'torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert run.stdout.rstrip().endswith(("CODE 0 False", "CODE 2 False")), run.stdout[-300:]
    assert "vitprune" in run.stdout + run.stderr


def test_public_names_exist_and_stages_can_be_called():
    for name in vitprune.__all__:
        assert callable(getattr(vitprune, name)), name
    from vitprune import allocate
    from vitprune.allocate import Target

    assert allocate is vitprune.allocate
    assert vitprune.Target is Target
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vitprune.nothing
