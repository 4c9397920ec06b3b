"""An order for each round, so that none of those that are compared is always the first."""

from collections.abc import Sequence
from typing import TypeVar

_Each = TypeVar("_Each")


def in_turn(each: Sequence[_Each], number: int) -> Sequence[_Each]:
    """Returns all of them, in the order of the round with this number: beginning with another one each time."""
    first = number % len(each)
    return (*each[first:], *each[:first])
