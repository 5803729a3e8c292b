"""Weighted sums of products, and the shrinkage of a covariance."""

from __future__ import annotations

import pytest
import torch

from vitprune.calibrate import Covariance
from vitprune.calibrate.covariance import WIDE


@pytest.mark.parametrize("inputs", [5, WIDE, 2 * WIDE + 3])
@pytest.mark.parametrize("central", [True, False])
def test_a_weighted_covariance_is_that_of_repeated_samples(inputs: int, central: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x_BNC = torch.randn(4, 6, inputs, generator=generator).double() + 1
    times_BN = torch.tensor([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [1.0, 1.0]]).repeat(1, 3)  # of mean 1
    counted, repeated = Covariance(inputs, x_BNC.device), Covariance(inputs, x_BNC.device)
    for part in (slice(1), slice(1, None)):
        counted.add(x_BNC[part], times_BN[part])
        repeated.add(x_BNC[part].flatten(0, 1).repeat_interleave(times_BN[part].flatten().long(), 0))
    assert counted.count == repeated.count == 24
    torch.testing.assert_close(counted.matrix(central), repeated.matrix(central))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_of_any_precision_are_summed_in_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x_NC, counts_N = torch.randn(64, 8, generator=generator).to(dtype), torch.rand(64, generator=generator).double()
    held, exact = Covariance(8, x_NC.device), Covariance(8, x_NC.device)
    held.add(x_NC, counts_N)
    exact.add(x_NC.double(), counts_N)
    assert held.matrix(True).dtype == torch.float64
    torch.testing.assert_close(held.matrix(True), exact.matrix(True), rtol=1e-5, atol=1e-6)
