"""Exact multilinear costs in the group sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Monomial = tuple[str, ...]  # group names, sorted; a name may occur twice (residual x residual)


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of coefficient x product of group sizes."""

    terms: tuple[tuple[Monomial, Fraction], ...]  # sorted by monomial, no zero coefficients

    @staticmethod
    def of(terms: Mapping[Monomial, Fraction | int] | Iterable[tuple[Monomial, Fraction | int]]) -> Polynomial:
        """The polynomial with these terms, like ones added up."""
        total: dict[Monomial, Fraction] = defaultdict(Fraction)
        for names, coefficient in terms.items() if isinstance(terms, Mapping) else terms:
            total[tuple(sorted(names))] += Fraction(coefficient)
        return Polynomial(tuple(sorted((m, c) for m, c in total.items() if c)))

    @staticmethod
    def constant(value: int | Fraction) -> Polynomial:
        """The polynomial without variables."""
        return Polynomial.of([((), value)])

    def __add__(self, other: Polynomial) -> Polynomial:
        return Polynomial.of([*self.terms, *other.terms])

    def __mul__(self, other: Polynomial) -> Polynomial:
        return Polynomial.of([(a + b, x * y) for a, x in self.terms for b, y in other.terms])

    def scale(self, factor: Fraction | int) -> Polynomial:
        """Every coefficient times `factor`."""
        return Polynomial.of([(m, c * factor) for m, c in self.terms])

    @staticmethod
    def total(parts: Iterable[Polynomial]) -> Polynomial:
        """The sum of many polynomials."""
        return Polynomial.of([t for p in parts for t in p.terms])

    def evaluate(self, sizes: Mapping[str, Any]) -> Any:
        """The value at `sizes`: an int for ints, a float for floats, a tensor (differentiable) for tensors.

        Raises KeyError for a group that `sizes` lacks.
        """
        total: Any = 0
        for names, coefficient in self.terms:
            term: Any = coefficient.numerator if coefficient.denominator == 1 else float(coefficient)
            for name in names:
                term = term * sizes[name]
            total = total + term
        return total

    def variables(self) -> frozenset[str]:
        """Names of the groups that it depends on."""
        return frozenset(name for names, _ in self.terms for name in names)
