"""Moments of calibration activations, and what they solve."""

from __future__ import annotations

import pytest
import torch

from vitprune.calibrate import Moments
from vitprune.calibrate.covariance import WIDE
from vitprune.refit.ridge import RIDGES, _errors, best_ridge


@pytest.mark.parametrize("bias", [True, False])
def test_moments_solve_the_shrunk_normal_equations(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    r = x @ torch.randn(6, 3, generator=generator).double() + 0.7 + 0.1 * torch.randn(400, 3, generator=generator)
    moments = Moments(6, 3, torch.device("cpu"))
    for part in range(4):
        moments.add(x[100 * part : 100 * part + 100], r[100 * part : 100 * part + 100])
    change, shift = moments.solve(bias)
    zero = torch.zeros_like(change), torch.zeros_like(shift)
    before, after = moments.error(*zero), moments.error(change, shift)
    cx, cr = (x - x.mean(0), r - r.mean(0)) if bias else (x, r)
    s, p, n = cx.T @ cx / 400, 6, 400
    square, trace_ = float((s @ s).trace()), float(s.trace())
    rho = ((1 - 2 / p) * square + trace_**2) / ((n + 1 - 2 / p) * (square - trace_**2 / p))
    assert 0 < rho < 0.2
    shrunk = (1 - rho) * s + rho * trace_ / p * torch.eye(p, dtype=torch.float64)
    want = torch.linalg.solve(shrunk, cx.T @ cr / 400).T
    torch.testing.assert_close(change, want)
    torch.testing.assert_close(shift, r.mean(0) - want @ x.mean(0) if bias else torch.zeros(3, dtype=torch.float64))
    assert before == pytest.approx(float(r.square().sum(1).mean()))
    assert after == pytest.approx(float((r - x @ change.T - shift).square().sum(1).mean()))
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(400, 1)], 1) if bias else x, r).solution
    best = float((r - (torch.cat([x, torch.ones(400, 1)], 1) if bias else x) @ exact).square().sum(1).mean())
    assert best <= after < 0.2 * before


def test_a_half_that_predicts_the_other_chooses_the_damping() -> None:
    generator = torch.Generator().manual_seed(2)
    draw = torch.randn(24, 3, generator=generator).double()
    for noise, samples, expected in ((0.01, 400, True), (50.0, 60, False)):
        halves = (Moments(24, 3, torch.device("cpu")), Moments(24, 3, torch.device("cpu")))
        for half in halves:
            x = torch.randn(samples // 2, 24, generator=generator).double()
            half.add(x, 0.05 * x @ draw + noise * torch.randn(len(x), 3, generator=generator))
        ridge = best_ridge(halves, True)
        if expected:
            assert ridge is not None and ridge < 0.1
            continue
        assert ridge is None or ridge >= 1
        total = halves[0] + halves[1]
        assert total.count == samples and torch.equal(total.xx, halves[0].xx + halves[1].xx)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_is_the_one_that_fits_one_by_one_choose(bias: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    mix, draw = torch.randn(12, 12, generator=generator), torch.randn(12, 4, generator=generator)
    for noise in (0.1, 3.0, 20.0):
        halves = (Moments(12, 4, torch.device("cpu")), Moments(12, 4, torch.device("cpu")))
        for half, samples in zip(halves, (40, 60), strict=True):
            x = torch.randn(samples, 12, generator=generator) @ mix + 1
            r = x @ draw + 2 + noise * torch.randn(samples, 4, generator=generator)
            half.add(x, r, 0.5 + torch.rand(samples, generator=generator))
        errors = {}
        for ridge in RIDGES:
            errors[ridge] = sum(b.error(*a.solve(bias, ridge)) for a, b in (halves, halves[::-1]))
        best = min(errors, key=errors.__getitem__)
        assert best_ridge(halves, bias) == (best if errors[best] < sum(h.rr / h.count for h in halves) else None)
        together = sum(_errors(*pair, bias) for pair in (halves, halves[::-1]))
        torch.testing.assert_close(together, torch.tensor(list(errors.values()), dtype=torch.float64))


def test_the_error_of_a_change_is_that_on_the_samples() -> None:
    generator = torch.Generator().manual_seed(4)
    x, r = torch.randn(50, 4, generator=generator).double(), torch.randn(50, 2, generator=generator).double() + 3
    moments = Moments(4, 2, torch.device("cpu"))
    moments.add(x, r)
    change, shift = torch.randn(2, 4, generator=generator).double(), torch.randn(2, generator=generator).double()
    want = float((r - x @ change.T - shift).square().sum(1).mean())
    assert moments.error(change, shift) == pytest.approx(want)


@pytest.mark.parametrize("inputs", [WIDE // 2, WIDE, 2 * WIDE + 7])
def test_moments_are_weighted_sums_of_products(inputs: int) -> None:
    generator = torch.Generator().manual_seed(6)
    x, r = torch.randn(40, inputs, generator=generator).double(), torch.randn(40, 5, generator=generator).double()
    weights = torch.rand(40, generator=generator)
    moments, single = Moments(inputs, 5, torch.device("cpu")), Moments(inputs, 5, torch.device("cpu"))
    for part in (slice(30), slice(30, None)):
        moments.add(x[part], r[part], weights[part])
        single.add(x[part].float(), r[part].float(), weights[part])
    w = weights.double().diag()
    torch.testing.assert_close(moments.xx, x.T @ w @ x)
    torch.testing.assert_close(moments.xr, x.T @ w @ r)
    torch.testing.assert_close(moments.x, weights.double() @ x)
    torch.testing.assert_close(moments.r, weights.double() @ r)
    assert moments.rr == pytest.approx(float((w @ r.square()).sum())) and moments.count == 40
    torch.testing.assert_close(single.xx, moments.xx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.xr, moments.xr, rtol=1e-5, atol=1e-5)


def test_moments_of_inputs_that_never_vary_change_the_bias_only() -> None:
    moments = Moments(3, 2, torch.device("cpu"))
    moments.add(torch.ones(50, 3), torch.tensor([[1.0, -2.0]]).expand(50, 2))
    change, shift = moments.solve(True)
    assert float(change.abs().max()) < 1e-6
    torch.testing.assert_close(shift, torch.tensor([1.0, -2.0], dtype=torch.float64))
    before, after = moments.error(torch.zeros_like(change), torch.zeros_like(shift)), moments.error(change, shift)
    assert (before, after) == (pytest.approx(5.0), pytest.approx(0.0, abs=1e-9))
