"""Integer polynomials in named sizes: how shapes, parameters and FLOPs stay exact before a site is known.

Belongs here: arithmetic and evaluation. Does not belong here: reading them from text (``expression``). A floor
division that does not come out even stays as one opaque factor, so that equal polynomials are equal at every
site; two spellings of a floor that only happen to agree count as different.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce

from esper.blueprints.rules import invalid

MAX_TERMS = 256
MAX_DEGREE = 16
MAX_COEFFICIENT = 2**62
MAX_FACTOR_CHARACTERS = 2048

#: A product of powers: ((factor's text, exponent), ...), sorted by text.
Monomial = tuple[tuple[str, int], ...]


class Polynomial:
    """An integer polynomial; immutable and hashable."""

    __slots__ = ("_quotients", "terms")

    def __init__(
        self,
        terms: Mapping[Monomial, int],
        quotients: Mapping[str, tuple[Polynomial, Polynomial]] | None = None,
    ) -> None:
        """Keep non-zero terms.

        Args:
            terms: Coefficient of each monomial.
            quotients: Numerator and denominator of each factor that is a floor division.

        Raises:
            BlueprintInvalid: There are too many terms, or a coefficient or degree is too large.
        """
        self.terms = {monomial: value for monomial, value in sorted(terms.items()) if value}
        self._quotients = dict(quotients or {})
        too_large = any(abs(value) > MAX_COEFFICIENT for value in self.terms.values())
        too_steep = any(sum(power for _, power in monomial) > MAX_DEGREE for monomial in self.terms)
        if len(self.terms) > MAX_TERMS or too_large or too_steep:
            raise invalid("expression", "", "an expression grows beyond what is allowed")

    @staticmethod
    def constant(value: int) -> Polynomial:
        """Return a number as a polynomial."""
        return Polynomial({(): value})

    @staticmethod
    def named(name: str) -> Polynomial:
        """Return one named size as a polynomial."""
        return Polynomial({((name, 1),): 1})

    def __add__(self, other: Polynomial | int) -> Polynomial:
        second = _as_polynomial(other)
        terms = dict(self.terms)
        for monomial, value in second.terms.items():
            terms[monomial] = terms.get(monomial, 0) + value
        return Polynomial(terms, self._quotients | second._quotients)

    def __sub__(self, other: Polynomial | int) -> Polynomial:
        return self + _as_polynomial(other) * -1

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        second = _as_polynomial(other)
        if len(self.terms) * len(second.terms) > MAX_TERMS * 4:
            raise invalid("expression", "", "an expression grows beyond what is allowed")
        terms: dict[Monomial, int] = {}
        for left, first in self.terms.items():
            for right, value in second.terms.items():
                monomial = _product(left, right)
                terms[monomial] = terms.get(monomial, 0) + first * value
        return Polynomial(terms, self._quotients | second._quotients)

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: Polynomial | int) -> Polynomial:
        divisor = _as_polynomial(other)
        number = divisor.as_constant()
        if number == 0:
            raise invalid("expression", "", "an expression divides by zero")
        if number is not None and (not self.names() or all(value % number == 0 for value in self.terms.values())):
            return Polynomial({key: value // number for key, value in self.terms.items()}, self._quotients)
        factor = f"(({self})//({divisor}))"
        if len(factor) > MAX_FACTOR_CHARACTERS:
            raise invalid("expression", "", "an expression grows beyond what is allowed")
        quotients = self._quotients | divisor._quotients | {factor: (self, divisor)}
        return Polynomial({((factor, 1),): 1}, quotients)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(tuple(self.terms.items()))

    def __str__(self) -> str:
        return "+".join(_terms(self)).replace("+-", "-") or "0"

    def as_constant(self) -> int | None:
        """Return the value if no size occurs, else None."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def names(self) -> set[str]:
        """Return the factors that occur: names of sizes and texts of floor divisions."""
        return {name for monomial in self.terms for name, _ in monomial}

    def evaluate(self, values: Mapping[str, int]) -> int:
        """Return the value with each named size replaced.

        Raises:
            BlueprintInvalid: A floor division by zero turned up at this site.
        """
        total = 0
        for monomial, value in self.terms.items():
            factors = (self._factor(name, values) ** power for name, power in monomial)
            total += reduce(lambda left, right: left * right, factors, value)
        return total

    def _factor(self, name: str, values: Mapping[str, int]) -> int:
        if name not in self._quotients:
            return values[name]
        numerator, denominator = self._quotients[name]
        divisor = denominator.evaluate(values)
        if divisor == 0:
            raise invalid("symbol_bounds", "", f"{name} divides by zero at this site")
        return numerator.evaluate(values) // divisor


def _as_polynomial(value: Polynomial | int) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial.constant(value)


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for name, power in right:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted(powers.items()))


def _terms(polynomial: Polynomial) -> Iterator[str]:
    for monomial, value in polynomial.terms.items():
        factors = [name for name, power in monomial for _ in range(power)]
        if value != 1 or not factors:
            factors.insert(0, str(value))
        yield "*".join(factors)
