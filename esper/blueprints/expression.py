"""Read size expressions such as ``2*C*r + C//4``: a small grammar, no evaluation of code.

Belongs here: tokens and the recursive descent. Does not belong here: arithmetic (``polynomial``) or what a name
stands for (the caller gives it).

::

    sum     = product (("+" | "-") product)*
    product = atom (("*" | "//") atom)*
    atom    = INTEGER | NAME | "-" atom | "(" sum ")"
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from esper.blueprints.polynomial import Polynomial
from esper.blueprints.rules import invalid, placed
from esper.errors import BlueprintInvalid

MAX_CHARACTERS = 512
MAX_NESTING = 16
#: Products and sums of single terms that one expression may take.
MAX_WORK = 2048
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9})(?![0-9])|([A-Za-z][A-Za-z0-9_]*)|(//|[-+*()]))")


def read_expression(value: int | str, names: Mapping[str, Polynomial], path: str) -> Polynomial:
    """Return an expression as a polynomial.

    Args:
        value: A number or the expression's text.
        names: What each name stands for.
        path: Where the expression stands in the document.

    Raises:
        BlueprintInvalid: The text is no expression, names something unknown or grows too large.
    """
    if isinstance(value, int):
        return Polynomial.constant(value)
    if len(value) > MAX_CHARACTERS:
        raise invalid(
            "expression",
            path,
            f"the expression has {len(value)} characters, {MAX_CHARACTERS} are allowed",
        )
    try:
        return _Reader(_tokens(value, path), names, path).whole()
    except BlueprintInvalid as error:
        raise placed(error, path) from error


def compact(text: str) -> str:
    """Return an expression's text without blanks, which carry no meaning."""
    return "".join(text.split())


def _tokens(text: str, path: str) -> list[str]:
    found: list[str] = []
    place = 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise invalid("expression", path, f"cannot read {text[place : place + 20]!r}")
        found.append(match.group().strip())
        place = match.end()
    return found


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str], names: Mapping[str, Polynomial], path: str) -> None:
        self._tokens = tokens
        self._names = names
        self._path = path
        self._place = 0
        self._nesting = 0
        self._work = 0

    def whole(self) -> Polynomial:
        found = self._sum()
        if self._place != len(self._tokens):
            raise invalid("expression", self._path, f"{self._tokens[self._place]!r} is not expected here")
        return found

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._place += 1
        return token

    def _sum(self) -> Polynomial:
        found = self._product()
        while self._peek() in {"+", "-"}:
            sign, second = self._next(), self._product()
            self._spend(len(found.terms) + len(second.terms))
            found = found + second if sign == "+" else found - second
        return found

    def _product(self) -> Polynomial:
        found = self._atom()
        while self._peek() in {"*", "//"}:
            sign, second = self._next(), self._atom()
            self._spend(len(found.terms) * len(second.terms))
            found = found * second if sign == "*" else found // second
        return found

    def _spend(self, work: int) -> None:
        """Count work before it is done: many small steps on one large polynomial take long, too."""
        self._work += work
        if self._work > MAX_WORK:
            raise invalid("expression", self._path, "the expression takes too much work; write it shorter")

    def _atom(self) -> Polynomial:
        token = self._next()
        if token.isdigit():
            return Polynomial.constant(int(token))
        if token in self._names:
            return self._names[token]
        if token not in {"-", "("}:
            known = ", ".join(sorted(self._names)) or "none"
            raise invalid("expression", self._path, f"{token or 'the end'!r} is no symbol; known: {known}")
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise invalid("expression", self._path, f"brackets are nested deeper than {MAX_NESTING}")
        if token.startswith("("):
            found = self._sum()
            if self._next() != ")":
                raise invalid("expression", self._path, "a bracket is not closed")
        else:
            found = self._atom() * -1
        self._nesting -= 1
        return found
