import copy
import dataclasses

import numpy as np
import pytest
import torch

from toys import CLASSES, DIM, HEAD_DIM, HEADS, HIDDEN, PATCH, TOKENS, Toy, toy_graph
from vitprune.calibrate import CalibrationError
from vitprune.score import METHODS, Method, ScoreInfo, register, score
from vitprune.score.conformance import check_method
from vitprune.score.types import ScoreError
from vitprune.trace.graph import Group


def tokens(seed: int = 0) -> list[torch.Tensor]:
    """Three batches for the toy, of two sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, TOKENS, PATCH, generator=generator) for n in (4, 4, 1)]


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same, with labels."""
    return [(x, torch.arange(len(x)) % CLASSES) for x in tokens()]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_conforms(name):
    check_method(METHODS[name], toy_graph(), Toy(), batches=pairs())
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
    with pytest.raises(ScoreError, match="needs calibration images, but got none; give some .*alone: magnitude-l2"):
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


def activations(model, path, batches, *, outputs=False):
    """What a linear layer reads (or gives), (samples, channels) float64."""
    seen = []
    layer = model.get_submodule(path)
    handle = layer.register_forward_hook(lambda _, args, out: seen.append(out if outputs else args[0]))
    with torch.no_grad():
        for batch in batches:
            model.eval()(torch.cat([batch, batch]) if len(batch) == 1 else batch)
    handle.remove()
    return torch.cat([x.flatten(0, -2) for x in seen]).double()


@pytest.mark.parametrize(("name", "central"), [("energy", False), ("variance", True)])
def test_activation_scores_are_what_a_unit_adds_to_its_readers(name, central):
    model, graph = Toy(), toy_graph()
    got = score(graph, model, name, batches=tokens())

    def moment(x):
        return (x - x.mean(0) * central).square()

    x = activations(model, "blocks.1.fc2", tokens())
    added = x[:, 7, None] * model.blocks[1].fc2.weight[:, 7].detach().double()  # (samples, outputs)
    assert got["blocks.1.fc1:mlp"][0, 7] == pytest.approx(float(moment(added).sum(1).mean()), rel=1e-6)
    x = activations(model, "blocks.0.proj", tokens())
    columns = slice(2 * HEAD_DIM, 3 * HEAD_DIM)
    weight = model.blocks[0].proj.weight.detach().double()
    each = moment(x)[:, columns].mean(0) * weight[:, columns].square().sum(0)
    assert got["blocks.0.attn:v"][2] == pytest.approx(each.numpy(), rel=1e-6)
    assert got["blocks.0.attn:heads"][0, 2] == pytest.approx(float(each.sum()), rel=1e-6)
    y = activations(model, "blocks.0.qkv", tokens(), outputs=True)
    q, k = 3 * HEAD_DIM + 5, HEADS * HEAD_DIM + 3 * HEAD_DIM + 5  # head 3, dim 5
    want = float(moment(y)[:, q].mean() * moment(y)[:, k].mean())
    assert got["blocks.0.attn:qk"][3, 5] == pytest.approx(want, rel=1e-6)
    total = 0.0
    for path in ("blocks.0.qkv", "blocks.0.fc1", "blocks.1.qkv", "blocks.1.fc1", "head"):
        columns_of = model.get_submodule(path).weight.detach().double().square().sum(0)
        x = activations(model, path, tokens())
        total += float(moment(x)[:, 4].mean() * columns_of[4])
    assert got["residual"][0, 4] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", ["energy", "variance"])
def test_activation_scores_do_not_see_how_a_linear_pair_is_scaled(name):
    model, graph = Toy(), toy_graph()
    before = score(graph, model, name, batches=tokens())
    row, column = 2 * HEADS * HEAD_DIM + 9, 9  # the values' dim 9 of head 0, and where proj reads it
    with torch.no_grad():
        model.blocks[0].qkv.weight[row] *= 8
        model.blocks[0].qkv.bias[row] *= 8
        model.blocks[0].proj.weight[:, column] /= 8
    after = score(graph, model, name, batches=tokens())
    for group in graph.groups:
        if group.kind != "residual":  # of which the values' row reads eight times as much now
            assert after[group.name] == pytest.approx(before[group.name], rel=1e-4), group.name


def test_a_unit_that_never_varies_has_energy_but_no_variance():
    model, graph = Toy(), toy_graph()
    with torch.no_grad():
        model.blocks[0].fc1.weight[3] = 0
        model.blocks[0].fc1.bias[3] = 2.0
    energy, variance = (score(graph, model, n, batches=tokens())["blocks.0.fc1:mlp"][0] for n in ("energy", "variance"))
    assert variance[3] < 1e-9 * variance.max()
    assert energy[3] > np.median(energy)


@pytest.mark.parametrize(("name", "central"), [("energy", False), ("variance", True)])
def test_branches_score_what_they_add_to_the_output(name, central):
    graph, model = toy_graph(), Toy()
    branch = Group("blocks.0:block", "block", 1, 1, None, (), "blocks.0", 0, modules=("blocks.0.fc1", "blocks.0.fc2"))
    unused = Group("blocks.1:block", "block", 1, 1, None, (), "blocks.1", 0, modules=("spare",))
    model.spare = torch.nn.Linear(1, 1)  # never called
    graph = dataclasses.replace(graph, groups=(*graph.groups, branch, unused), _by_name={})
    got = score(graph, model, name, batches=iter(tokens()))
    silent = copy.deepcopy(model)
    for parameter in silent.blocks[0].fc2.parameters():
        torch.nn.init.zeros_(parameter)
    images = torch.cat([*tokens(), tokens()[-1]])  # the last batch holds one image, which is taken twice
    with torch.no_grad():
        change = (model.eval()(images) - silent.eval()(images)).double()
    change = change - change.mean(0) if central else change
    assert got["blocks.0:block"][0, 0] == pytest.approx(float(change.square().mean(0).sum()), rel=1e-4)
    assert got["blocks.1:block"][0, 0] == got["blocks.0:block"][0, 0], "what is not known is not taken first"


def test_lamp_compares_branches_with_each_other():
    graph, model = toy_graph(), Toy()
    branches = [
        Group(f"blocks.{b}:block", "block", 1, 1, None, (), f"blocks.{b}", b, modules=(f"blocks.{b}.fc2",))
        for b in range(2)
    ]
    torch.nn.init.constant_(model.blocks[0].fc2.weight, 5.0)
    graph = dataclasses.replace(graph, groups=(*graph.groups, *branches), _by_name={})
    got = score(graph, model, "lamp")
    assert got["blocks.0:block"].item() == 1.0 and got["blocks.1:block"].item() < 0.1


def test_activation_scores_need_images():
    with pytest.raises(ScoreError, match="needs calibration images"):
        score(toy_graph(), Toy(), "variance")
    with pytest.raises(ScoreError, match="got no batch"):
        score(toy_graph(), Toy(), "variance", batches=[])


def scaled_loss(model, graph, group, lane, unit, factor, images, labels):
    """The loss with all parameters of one unit multiplied by a factor, in float64."""
    model = copy.deepcopy(model).double().eval()
    named = dict(model.named_parameters())
    with torch.no_grad():
        for member in graph[group].members:
            positions = torch.as_tensor(member.index[lane, unit])
            part = named[member.tensor].index_select(member.dim, positions) * factor
            named[member.tensor].index_copy_(member.dim, positions, part)
        return float(torch.nn.functional.cross_entropy(model(images.double()), labels))


@pytest.mark.parametrize(
    ("group", "lane", "unit"),
    [
        ("blocks.0.fc1:mlp", 0, 11),
        ("blocks.1.attn:qk", 2, 5),
        ("blocks.0.attn:v", 1, 3),
        ("blocks.1.attn:heads", 0, 1),
        ("residual", 0, 9),
    ],
)
def test_gradient_scores_are_finite_differences(group, lane, unit):
    model, graph, step = Toy(), toy_graph(), 1e-4

    def slope(images, labels):
        up, down = (scaled_loss(model, graph, group, lane, unit, 1 + s, images, labels) for s in (step, -step))
        return (up - down) / (2 * step)

    taylor = np.mean([abs(slope(x, y)) for x, y in pairs()])
    fisher = np.mean([slope(x[i : i + 1], y[i : i + 1]) ** 2 for x, y in pairs() for i in range(len(x))])
    assert taylor > 1e-6
    assert score(graph, model, "taylor", batches=pairs())[group][lane, unit] == pytest.approx(taylor, rel=2e-3)
    assert score(graph, model, "fisher", batches=pairs())[group][lane, unit] == pytest.approx(fisher, rel=2e-3)


def test_a_branchs_gradient_scores_are_finite_differences_too():
    """With respect to a factor on all that its last module adds."""
    model, step, path = Toy(), 1e-4, "blocks.1.fc2"
    branch = Group("blocks.1:block", "block", 1, 1, None, (), path, 0, modules=("blocks.1.fc1", path))
    graph = dataclasses.replace(toy_graph(), groups=(*toy_graph().groups, branch), _by_name={})

    def loss(images, labels, factor):
        scaled = copy.deepcopy(model).double().eval()
        with torch.no_grad():
            for parameter in scaled.get_submodule(path).parameters():
                parameter.mul_(factor)
            return float(torch.nn.functional.cross_entropy(scaled(images.double()), labels))

    def slope(images, labels):
        return (loss(images, labels, 1 + step) - loss(images, labels, 1 - step)) / (2 * step)

    taylor = np.mean([abs(slope(x, y)) for x, y in pairs()])
    fisher = np.mean([slope(x[i : i + 1], y[i : i + 1]) ** 2 for x, y in pairs() for i in range(len(x))])
    assert taylor > 1e-6
    for method, want in (("taylor", taylor), ("fisher", fisher)):
        assert score(graph, model, method, batches=pairs())["blocks.1:block"].item() == pytest.approx(want, rel=2e-3)
    squares = score(graph, model, "hessian", batches=pairs())["blocks.1:block"].item()
    assert 0 < squares != pytest.approx(fisher / 2, rel=1e-2), "its parameters count one by one"


def test_hessian_is_half_the_squares_of_every_parameters_own_term():
    model, graph = Toy(), toy_graph()
    found = score(graph, model, "hessian", batches=pairs())
    want = {"blocks.0.fc1:mlp": 0.0, "blocks.1.attn:heads": 0.0}
    images = [(x[i : i + 1], y[i : i + 1]) for x, y in pairs() for i in range(len(x))]
    named = dict(model.named_parameters())
    for x, y in images:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        grads = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
        for group in want:
            for member in graph[group].members:
                if grads.get(member.tensor) is not None:
                    every = (grads[member.tensor] * named[member.tensor]).detach().double().square()
                    positions = torch.as_tensor(member.index[0, 1])
                    want[group] += float(every.index_select(member.dim, positions).sum()) / 2 / len(images)
    for group, value in want.items():
        assert value > 0 and found[group][0, 1] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian"])
def test_gradient_scores_name_the_layer_whose_activations_are_no_numbers(name):
    bad = [(x.clone(), y) for x, y in pairs()]
    bad[1][0][0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="activations at layer 'embed' are NaN or infinite"):
        score(toy_graph(), Toy(), name, batches=bad)
    model = Toy()
    with torch.no_grad():
        model.head.bias[0] = torch.inf  # what layers read is finite
    with pytest.raises(ScoreError, match="the loss on the calibration images is NaN or infinite; look at"):
        score(toy_graph(), model, name, batches=pairs())


def test_gradient_scores_need_labels_and_leave_frozen_weights_frozen():
    model = Toy()
    model.embed.weight.requires_grad_(False)
    model.embed.weight.grad = torch.ones_like(model.embed.weight)
    score(toy_graph(), model, "taylor", batches=pairs())
    assert not model.embed.weight.requires_grad and float(model.embed.weight.grad.sum()) == model.embed.weight.numel()
    with pytest.raises(ScoreError, match="but got images alone"):
        score(toy_graph(), model, "taylor", batches=tokens())
    with pytest.raises(ScoreError, match="got no batch"):
        score(toy_graph(), model, "fisher", batches=[])


def test_lamp_by_hand():
    graph, model = toy_graph(), Toy()
    energy = score(graph, model, "magnitude-l2")["blocks.0.attn:qk"] ** 2
    got = score(graph, model, "lamp")["blocks.0.attn:qk"]
    assert got.max() == 1.0 and got.argmax() == energy.argmax()
    value = energy[1, 4]
    assert got[1, 4] == pytest.approx(value / energy[energy >= value].sum())
