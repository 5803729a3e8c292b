"""The configuration of a comparison: what it means, and every way in which it can be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vitprune.allocate import Target
from vitprune.cli.config import Config, read_config
from vitprune.errors import TargetError, VitpruneError
from vitprune.masks import MaskError
from vitprune.pipeline.cells import ComparisonError, cells_of, finetuning
from vitprune.pipeline.learned import Learned
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.recover import TrainError, TrainSettings

TOP = 'model = "shipped:fmnist-vit"\ndata = "fashion-mnist-sample"\nseeds = [0, 1]\ntargets = ["macs=0.5"]\n'
ONE = '[methods.lamp]\nscope = "global"\n'


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return read_config(path, device="cpu", allow_module=None, quiet=True)


def cells(config: Config) -> Any:
    return cells_of(config.methods, config.targets, config.seeds, config.training, {"x": 1}, taught=True)


def test_what_a_file_means(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        TOP
        + """
baseline = "lamp"
[common]
epochs = 6
batch-size = 16
search_lr = 3e-4
calibration = 64
limit = 100
set = "keep=last"
distill = false
[methods.lamp]
rotate = false
min-heads = 2
kinds = ["mlp", "heads"]
ratio = "heads=0.5"
[methods.best]
method = "auto"
calibration = 128
[methods.masks]
mask-epochs = 2
mask-warmup = 1
mask-start = "dense"
[methods.gates]
method = "vtp"
mask-epochs = 4
freeze = "heads"
""",
    )
    assert (found.model, found.data.spec, found.data.limit) == ("shipped:fmnist-vit", "fashion-mnist-sample", 100)
    assert found.seeds == (0, 1) and found.targets == ("macs=0.5",) and found.baseline == "lamp"
    assert found.training.epochs == 6 and found.training.batch_size == 16 and found.training.keep == "last"
    assert found.how["distill"] is False and found.how["device"] == "cpu"
    lamp = found.methods["lamp"]
    assert lamp.method == "lamp" and lamp.kinds == ("mlp", "heads") and lamp.minimum == {"heads": 2}
    assert (lamp.rotate, lamp.refit, lamp.target, lamp.ratios) == (False, True, None, {"heads": 0.5})
    by = {(c.method, c.seed): c for c in cells(found)}
    assert len(by) == 8 and [c.seed for c in cells(found)] == [0] * 4 + [1] * 4
    best = by["best", 1]
    assert (best.settings.method, best.settings.scope, best.settings.calibration) == ("output-error", "per-cost", 128)
    assert best.settings.target == Target("macs", 0.5) and (best.training.epochs, best.training.seed) == (6, 1)
    masks = by["masks", 1]
    assert masks.settings.learned.search.epochs == 2 and masks.settings.learned.search.lr == 3e-4
    assert masks.settings.learned.search.batch_size == 16 and masks.settings.learned.search.keep == "last"
    assert masks.settings.learned.warmup.epochs == 1 and masks.settings.learned.warmup.seed == 1
    assert (masks.training.epochs, masks.training.seed, masks.settings.learned.start) == (3, 1, "dense")
    assert by["gates", 0].training.epochs == 2 and by["gates", 0].settings.learned.freeze == ("heads",)


def test_cells_keep_their_keys(tmp_path: Path) -> None:
    """Other methods, targets and seeds, their order, their names and options that do not matter to a cell."""
    small = {(c.settings.method, str(c.target), c.seed): c.key for c in cells(read(tmp_path, TOP + ONE))}
    assert len(set(small.values())) == 2 and all(re.fullmatch("[0-9a-f]{12}", key) for key in small.values())
    more = TOP.replace("[0, 1]", "[5, 1, 0]").replace('"macs=0.5"', '"params=0.3", "macs=0.50x"')
    more += (
        '[common]\nmask_epochs = 3\nmask-lr = 0.3\nsearch-lr = 0.1\n[methods.masks]\n[methods.other]\nmethod = "lamp"\n'
    )
    large = {
        (c.settings.method, str(c.target), c.seed): c.key for c in cells(read(tmp_path, f'{more}scope = "global"\n'))
    }
    assert len(large) == 12 == len(set(large.values())) and small.items() <= large.items()
    for text in (
        TOP + ONE + "round-to = 4\n",
        TOP + "[common]\nepochs = 9\n" + ONE,
        TOP + "[common]\nlr = 1e-3\n" + ONE,
        TOP.replace("0.5", "0.51") + ONE,
    ):
        assert not set(small.values()) & {c.key for c in cells(read(tmp_path, text))}
    given = [
        c.key
        for what in ({"x": 1}, {"x": 2})
        for c in cells_of({"a": PruneSettings(None)}, ["macs=0.5"], [0], None, what, taught=True)
    ]
    assert len(set(given)) == 2


def test_the_default_scope_by_name_is_the_same_cell(tmp_path: Path) -> None:
    named = cells(read(tmp_path, TOP + '[methods.x]\nmethod = "output-error"\nscope = "per-cost"\n'))
    assert [c.key for c in named] == [c.key for c in cells(read(tmp_path, TOP + "[methods.auto]\n"))]


def test_the_budget_is_equal() -> None:
    whole, masks = TrainSettings(epochs=10), PruneSettings(None, "masks", learned=Learned(TrainSettings(epochs=7)))
    assert finetuning(PruneSettings(None), whole) == whole and finetuning(PruneSettings(None), None) is None
    assert finetuning(masks, whole) == TrainSettings(epochs=3)
    warm = PruneSettings(None, "vtp", learned=Learned(TrainSettings(epochs=7), TrainSettings(epochs=3)))
    with pytest.raises(ComparisonError, match="10 in all, but 7 under masks and 3 of warm-up leave 0 for fine-tuning"):
        finetuning(warm, whole)
    with pytest.raises(ComparisonError, match="0 in all, but 7 under masks and 0 of warm-up leave -7"):
        finetuning(masks, None)


BAD = (
    ("seeds = [0", "c.toml cannot be read: .*see docs/usage.md"),
    (TOP + 'colour = "red"\n' + ONE, "the top of the file has model, .*, but got 'colour'"),
    (TOP + 'metods = "red"\n' + ONE, "but got 'metods'; did you mean methods?"),
    (TOP.replace("seeds", "seed") + ONE, "but got 'seed'; did you mean seeds?"),
    (TOP, r"methods is missing; give a table \[methods.NAME\] for each"),
    (TOP + "[methods]\n", "methods is empty"),
    (TOP.replace("[0, 1]", "[]") + ONE, r"seeds is empty; give seeds = \[0, 1, 2\]"),
    (TOP.replace("[0, 1]", "3") + ONE, "seeds must be a list, but got 3"),
    (TOP.replace("[0, 1]", "[0, 1.5]") + ONE, "each of seeds must be a whole number, but got 1.5"),
    (TOP.replace("[0, 1]", "[true]") + ONE, "each of seeds must be a whole number, but got True"),
    (TOP.replace('["macs=0.5"]', "[0.5]") + ONE, "each of targets must be a text, but got 0.5"),
    (TOP.replace('"shipped:fmnist-vit"', "3") + ONE, "model must be a text, but got 3"),
    ("common = 3\n" + TOP + ONE, "common must be a table, but got 3"),
    (TOP + "[methods]\nlamp = 3\n", r"methods.lamp must be a table of options, \[methods.lamp\], but got 3"),
    (TOP + "[methods.lamp]\nscop = 3\n", r"\[methods.lamp\] has 'scop', but options are .*; did you mean scope"),
    (TOP + "[methods.lamp]\nset_ = 3\n", r"\[methods.lamp\] has 'set_'"),
    (TOP + "[methods.lamp]\nscope = 3\n", r"\[methods.lamp\] scope must be a text, but got 3"),
    (TOP + '[methods.lamp]\nsteps = "2"\n', "steps must be a whole number, but got '2'"),
    (TOP + "[methods.lamp]\nsteps = true\n", "steps must be a whole number, but got True"),
    (TOP + "[methods.lamp]\nsteps = 0\n", r"\[methods.lamp\] steps must be at least 1, but got 0"),
    (TOP + "[methods.lamp]\nrotate = 1\n", "rotate must be true or false, but got 1"),
    (TOP + "[methods.lamp]\nmask-lr = nan\n", "mask-lr must be a number, but got nan"),
    (TOP + "[methods.lamp]\nkinds = [3]\n", "kinds must be a text, but got 3"),
    (TOP + "[methods.lamp]\nprotect = [3]\n", "protect must be a text, but got 3"),
    (TOP + "[methods.lamp]\nmin-heads = 2\nmin_heads = 2\n", "min_heads twice"),
    (TOP + "[common]\nval-fraction = 0.95\n" + ONE, "val-fraction must be in 0.001..0.9, but got 0.95"),
    (TOP + '[common]\nmethod = "lamp"\n' + ONE, r"\[common\] has method 'lamp'; give each of \[methods.NAME\] its own"),
    (TOP + '[common]\nset = ["epochs=3"]\n' + ONE, "set has 'epochs=3'; give epochs in"),
    (TOP + '[common]\nset = ["keep=worst"]\n' + ONE, r"\[methods.lamp\], \[common\]: keep must be best or last"),
    (TOP + "[common]\nlr = -1.0\n" + ONE, "lr must be positive, but got -1"),
    (TOP + "[methods.mine]\n", r"\[methods.mine\] has no method, and 'mine' is none of auto, .*masks"),
    (TOP + "[methods.masks]\n", r"\[methods.masks\] trains masks, which takes a part of the 10 epochs"),
    (TOP + '[methods.lamp]\nratio = "mlp"\n', "--ratio must be KIND=SHARE"),
    (TOP + '[methods.lamp]\nratios-file = "none.toml"\n', "none.toml"),
    *((TOP + f"[methods.lamp]\n{key} = 1\n", rf"\[methods.lamp\] has {key}, but training and data are the same")
      for key in ("epochs", "lr", "limit", "patience", "distill", "batch-size", "latency-batch", "set", "new-head")),
    *((TOP + f"[{table}]\n{key} = 1\n" + ONE, rf"\[{table}\] has {key}, which stands {where}")
      for table, key, where in (
        ("common", "model", "at the top"), ("common", "seed", "as seeds"), ("common", "target", "as targets"),
        ("methods.x", "mask-weight", "as targets"), ("methods.x", "device", "on the command line"),
        ("common", "out", "on the command line"),
    )),
)  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(VitpruneError, match=said) as error:
        read(tmp_path, text)
    assert "c.toml" in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(VitpruneError, match="none.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")


LAMP = {"lamp": PruneSettings(None, "lamp")}
WRONG: tuple[tuple[dict[str, Any], type[VitpruneError], str], ...] = (
    ({"methods": {}}, ComparisonError, "needs methods, at least one"),
    ({"seeds": []}, ComparisonError, "needs seeds, at least one"),
    ({"targets": []}, ComparisonError, "needs targets, at least one"),
    ({"seeds": [1, 0, 1]}, ComparisonError, "seeds of a comparison must differ, but 1 stands there 2 times"),
    ({"targets": ["macs=0.5", "macs=0.50x"]}, ComparisonError, "targets .* must differ, but macs=0.5 stands there 2"),
    ({"seeds": [-1]}, ComparisonError, "seeds must be whole numbers, not negative, but got -1"),
    ({"targets": ["flops=0.5"]}, TargetError, "but got 'flops'"),
    ({"methods": {"a|b": PruneSettings(None)}}, ComparisonError, "letters, digits and any of _ . [+] -, but got 'a|b'"),
    ({"methods": {"a": PruneSettings(None, "lmap")}}, VitpruneError, "method a at macs=0.5: .*did you mean 'lamp'"),
    ({"methods": {"a": PruneSettings(None, "lamp", "gobal")}}, TargetError, "the scope must be of .*but got gobal"),
    ({"methods": {"a": PruneSettings(None, kinds=("mpl",))}}, TargetError, "kinds must be of .*but got mpl"),
    ({"methods": {"a": PruneSettings(None, ratios={"mpl": 1})}}, TargetError, "kinds with ratios must be of"),
    ({"methods": {"a": PruneSettings(None, reduction="some")}}, VitpruneError, "reduction must be one of"),
    ({"methods": {"a": PruneSettings(None, minimum={"mpl": 1})}}, TargetError, "minimum is given for 'mpl'"),
    ({"methods": {"a": PruneSettings(Target("macs", 0.5))}}, TargetError, "targets are the comparison's"),
    ({"methods": {"a": PruneSettings(None, "masks", learned=Learned(weight=1.0))}}, TargetError, "targets are"),
    ({"methods": {"a": PruneSettings(None, "masks", steps=2)}}, MaskError, "does not take several steps"),
    ({"methods": {"a": PruneSettings(None, "masks")}}, ComparisonError, "method a at macs=0.5: the epochs of training"),
    ({"methods": {**LAMP, "again": PruneSettings(None, "lamp", "local")}}, ComparisonError, "lamp and again have"),
    ({"training": TrainSettings(feature_weight=1.0), "taught": False}, TrainError, "needs a teacher"),
)  # fmt: skip


@pytest.mark.parametrize(("given", "error", "said"), WRONG)
def test_what_is_wrong_with_a_comparison(given: dict[str, Any], error: type[VitpruneError], said: str) -> None:
    usual: dict[str, Any] = {
        "methods": LAMP,
        "targets": ["macs=0.5"],
        "seeds": [0],
        "training": TrainSettings(epochs=10),
    }
    usual |= {"common": {}, "taught": True}
    with pytest.raises(error, match=said):
        cells_of(**usual | given)


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "usage.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    found = read(tmp_path, blocks[0])
    assert found.baseline in found.methods and cells(found)
