"""Sizes of symbolic dimensions, as linear expressions, and the equations between them.

A size is ``constant + sum(coefficient * variable)``. Operators equate sizes ("this dimension meets
a weight of 2560 rows", "the mask is as long as past and sequence together"); every equation is
solved for one of its variables at once, so what is left free can be chosen.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Size:
    """A linear expression of variables.

    Attributes:
        constant: what is left where all variables are 0.
        terms: variables and their coefficients, by name; no coefficient is 0.
    """

    constant: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, variable: str) -> Size:
        """The variable itself."""
        return cls(0, ((variable, 1),))

    @classmethod
    def _sum(cls, constant: int, terms: Iterable[tuple[str, int]]) -> Size:
        total: dict[str, int] = {}
        for name, coefficient in terms:
            total[name] = total.get(name, 0) + coefficient
        return cls(constant, tuple(sorted((n, c) for n, c in total.items() if c)))

    @property
    def value(self) -> int | None:
        """The number, where there is no variable."""
        return None if self.terms else self.constant

    @property
    def variables(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(name for name, _ in self.terms)

    def __add__(self, other: Size) -> Size:
        return self._sum(self.constant + other.constant, (*self.terms, *other.terms))

    def __sub__(self, other: Size) -> Size:
        return self + other.times(-1)

    def times(self, factor: int) -> Size:
        """The size multiplied by a number."""
        return self._sum(self.constant * factor, ((n, c * factor) for n, c in self.terms))

    def divided(self, divisor: int) -> Size | None:
        """The size divided by a number; None where that leaves a remainder."""
        numbers = (self.constant, *(coefficient for _, coefficient in self.terms))
        if divisor == 0 or any(number % divisor for number in numbers):
            return None
        return self._sum(self.constant // divisor, ((n, c // divisor) for n, c in self.terms))

    def at(self, values: Mapping[str, int]) -> int:
        """The number where every variable has a value."""
        return self.constant + sum(coefficient * values[name] for name, coefficient in self.terms)


@dataclass(slots=True)
class Sizes:
    """Variables, and what is known of them.

    Attributes:
        solved: what a variable is equal to, in terms of others.
        products: variables that are a product of sizes times a number, as of a flattened tensor.
    """

    solved: dict[str, Size] = field(default_factory=dict)
    products: list[tuple[str, int, tuple[Size, ...]]] = field(default_factory=list)
    _num_fresh: int = 0

    def fresh(self) -> Size:
        """A variable of its own, of a dimension that no input has."""
        self._num_fresh += 1
        return Size.of(f"{_FRESH}{self._num_fresh}")

    def product(self, factor: int, sizes: tuple[Size, ...]) -> Size:
        """A variable that is ``factor`` times the product of the sizes."""
        made = self.fresh()
        self.products.append((made.variables[0], factor, sizes))
        return made

    def resolve(self, size: Size) -> Size:
        """The size in terms of variables that are free."""
        while any(name in self.solved for name in size.variables):
            total = Size(size.constant)
            for name, coefficient in size.terms:
                total += self.solved.get(name, Size.of(name)).times(coefficient)
            size = total
        return size

    def equate(self, one: Size, other: Size) -> bool:
        """Take two sizes to be equal; False where that contradicts what is known already."""
        gap = self.resolve(one - other)
        if not gap.terms:
            return gap.constant == 0
        divisor = math.gcd(gap.constant, *(coefficient for _, coefficient in gap.terms))
        gap = gap.divided(divisor) or gap
        name = _to_eliminate(gap)
        if name is None:
            return False
        coefficient = dict(gap.terms)[name]
        found = (gap - Size.of(name).times(coefficient)).times(-coefficient)
        if not found.terms and found.constant < 0:
            return False
        self.solved[name] = found
        return True

    def solve_products(self) -> None:
        """Solve products that are known for the only factor that is not.

        Two unknown factors of a product, as the height and width of a flattened image, are taken
        to be equal.
        """
        for name, factor, sizes in self.products:
            total = self.resolve(Size.of(name)).value
            resolved = [self.resolve(size) for size in sizes]
            known = factor * math.prod(size.constant for size in resolved if not size.terms)
            unknown = [size for size in resolved if size.terms]
            if total is None or not unknown or known <= 0 or total % known:
                continue
            root = math.isqrt(total // known)
            if len(unknown) == 1:
                self.equate(unknown[0], Size(total // known))
            elif len(unknown) == 2 and root * root == total // known:
                for size in unknown:
                    self.equate(size, Size(root))


# No name of a model's dimension begins like this.
_FRESH = "\0"


def _to_eliminate(gap: Size) -> str | None:
    """The variable an equation ``gap = 0`` is solved for; its coefficient is 1 or -1.

    The sum of others rather than a part of it, so that the sum stays positive, and dimensions
    inside the model rather than those of inputs.
    """
    units = [(name, coefficient) for name, coefficient in gap.terms if abs(coefficient) == 1]
    inner = [name for name, _ in units if name.startswith(_FRESH)]
    if inner:
        return inner[-1]
    for name, coefficient in units:
        others = [c for n, c in gap.terms if n != name]
        if all(c * coefficient < 0 for c in others) and gap.constant * coefficient <= 0:
            return name
    return units[-1][0] if units else None


def parse_size(text: str) -> Size | None:
    """A dimension's name as exporters write it: ``batch``, ``past + sequence``, ``2*s0 - 1``.

    None where it is no linear expression; it is then a name like any other.
    """
    try:
        return _linear(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _linear(node: ast.expr) -> Size:
    if isinstance(node, ast.Name):
        return Size.of(node.id)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Size(node.value)
    if isinstance(node, ast.BinOp):
        left, right = _linear(node.left), _linear(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            if left.value is not None:
                return right.times(left.value)
            if right.value is not None:
                return left.times(right.value)
    raise ValueError("not a linear expression")
