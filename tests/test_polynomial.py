from fractions import Fraction

import pytest
import torch

from toys import CLASSES, DIM, HEAD_DIM, HEADS, HIDDEN, TOKENS, Toy, toy_graph
from vitprune.trace.polynomial import Polynomial


def test_like_terms_add_and_zeros_vanish():
    p = Polynomial.of([(("b", "a"), 2), (("a", "b"), 3), (("a",), 1), (("a",), -1)])
    assert p.terms == ((("a", "b"), Fraction(5)),)
    assert p.variables() == {"a", "b"}


def test_arithmetic_agrees_with_numbers():
    p = Polynomial.of({("a",): 2, (): 1})
    q = Polynomial.of({("a", "b"): Fraction(1, 2), ("b",): 3})
    at = {"a": 4, "b": 6}
    assert (p * q).evaluate(at) == (2 * 4 + 1) * (4 * 6 // 2 + 3 * 6)
    assert (p + q).evaluate(at) == 9 + 30
    assert Polynomial.total([p, q, p]) == p.scale(2) + q
    assert Polynomial.constant(0).terms == ()


def test_evaluate_keeps_ints_and_gradients():
    p = Polynomial.of({("a", "a", "b"): 3, ("b",): 1})
    assert p.evaluate({"a": 2, "b": 5}) == 65 and isinstance(p.evaluate({"a": 2, "b": 5}), int)
    a = torch.tensor(2.0, requires_grad=True)
    p.evaluate({"a": a, "b": torch.tensor(5.0)}).backward()
    assert a.grad == 60.0
    with pytest.raises(KeyError, match="b"):
        p.evaluate({"a": 1})


def test_toy_costs_equal_the_formula_and_the_modules_own_count():
    macs, params = toy_graph().cost()
    assert params == sum(p.numel() for p in Toy().parameters())
    width = HEADS * HEAD_DIM
    block = TOKENS * DIM * (4 * width + 2 * HIDDEN) + 2 * TOKENS * TOKENS * width
    assert macs == TOKENS * 12 * DIM + 2 * block + DIM * CLASSES
