import dataclasses

import numpy as np
import pytest
import torch

from toys import DIM, HEAD_DIM, HEADS, HIDDEN, Toy, toy_graph
from vitprune.score import METHODS, Method, ScoreInfo, register, score
from vitprune.score.conformance import check_method
from vitprune.score.types import ScoreError
from vitprune.trace.graph import Group


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_conforms(name):
    check_method(METHODS[name], toy_graph(), Toy())
    assert METHODS[name].info.name == name


@pytest.mark.parametrize(("name", "p"), [("magnitude-l1", 1), ("magnitude-l2", 2)])
def test_magnitude_is_the_mean_over_a_units_own_elements(name, p):
    model, graph = Toy(), toy_graph()
    got = score(graph, model, name)
    block = model.blocks[1]
    unit = torch.cat([block.fc1.weight[7], block.fc1.bias[7:8], block.fc2.weight[:, 7]]).double()
    assert got["blocks.1.fc1:mlp"][0, 7] == pytest.approx(float((unit.detach().abs() ** p).mean() ** (1 / p)), rel=1e-6)
    width, at = HEADS * HEAD_DIM, 2 * HEAD_DIM + 5  # head 2, dim 5
    rows = [at, width + at]
    unit = torch.cat([block.qkv.weight[rows].flatten(), block.qkv.bias[rows]]).double()
    assert got["blocks.1.attn:qk"][2, 5] == pytest.approx(float((unit.detach().abs() ** p).mean() ** (1 / p)), rel=1e-6)
    assert {g: v.shape for g, v in got.items() if g.startswith(("residual", "blocks.0"))} == {
        "residual": (1, DIM),
        "blocks.0.attn:heads": (1, HEADS),
        "blocks.0.attn:qk": (HEADS, HEAD_DIM),
        "blocks.0.attn:v": (HEADS, HEAD_DIM),
        "blocks.0.fc1:mlp": (1, HIDDEN),
    }


def test_magnitude_does_not_depend_on_the_number_of_elements():
    model = Toy()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, -0.5)
    for method in ("magnitude-l1", "magnitude-l2"):
        for name, values in score(toy_graph(), model, method).items():
            assert np.allclose(values, 0.5), (method, name)


def test_block_scores_average_the_branch():
    graph, model = toy_graph(), Toy()
    branch = Group("blocks.0:block", "block", 1, 1, None, (), "blocks.0", 0, modules=("blocks.0.fc1", "blocks.0.fc2"))
    graph = dataclasses.replace(graph, groups=(*graph.groups, branch), _by_name={})
    with torch.no_grad():
        for module in (model.blocks[0].fc1, model.blocks[0].fc2):
            module.weight.fill_(2.0)
            module.bias.fill_(2.0)
    assert score(graph, model)["blocks.0:block"] == pytest.approx(np.array([[2.0]]))


def test_random_follows_the_seed_and_differs_between_groups():
    graph, model = toy_graph(), Toy()
    one, same, other = (score(graph, model, "random", seed=s) for s in (1, 1, 2))
    assert np.array_equal(one["residual"], same["residual"])
    assert not np.array_equal(one["residual"], other["residual"])
    assert not np.array_equal(one["blocks.0.attn:qk"], one["blocks.1.attn:qk"])


def test_unknown_method_names_the_nearest():
    with pytest.raises(ScoreError, match="must be one of .*magnitude-l2.* but got 'magnitude-12'; did you mean"):
        score(toy_graph(), Toy(), "magnitude-12")


def test_register_refuses_a_taken_name(monkeypatch):
    monkeypatch.setattr("vitprune.score.registry.METHODS", dict(METHODS))
    mine = Method(ScoreInfo("mine", "ones", ""), METHODS["random"].compute)
    assert register(mine) is mine
    with pytest.raises(ScoreError, match="'mine' is registered already"):
        register(mine)


def test_data_is_asked_for(monkeypatch):
    needy = Method(ScoreInfo("needy", "needs data", "", ("data",)), METHODS["random"].compute)
    monkeypatch.setitem(METHODS, "needy", needy)
    with pytest.raises(ScoreError, match="needs calibration batches"):
        score(toy_graph(), Toy(), "needy")
    assert score(toy_graph(), Toy(), "needy", batches=[]).keys() == toy_graph().sizes().keys()


def test_weights_that_are_not_numbers_are_named():
    model = Toy()
    with torch.no_grad():
        model.blocks[0].fc1.weight[3, 3] = float("nan")
    with pytest.raises(ScoreError, match="group 'residual' give scores that are not finite"):
        score(toy_graph(), model)


def test_meta_weights_are_refused():
    with pytest.raises(ScoreError, match="'embed.weight' is on the meta device"):
        score(toy_graph(), Toy().to("meta"))


@pytest.mark.parametrize("fault", ["shape", "seed", "touch"])
def test_conformance_finds_a_faulty_method(fault):
    def compute(inputs):
        result = dict(METHODS["random"].compute(inputs))
        if fault == "shape":
            result["residual"] = result["residual"][:, :-1]
        elif fault == "seed":
            result["residual"] = np.random.random((1, DIM))
        else:
            with torch.no_grad():
                inputs.model.embed.weight.mul_(2)
        return result

    with pytest.raises(AssertionError, match={"shape": "shape", "seed": "same seed", "touch": "changed embed"}[fault]):
        check_method(Method(ScoreInfo("faulty", "x", ""), compute), toy_graph(), Toy())
