"""One comparison of a filter, as the store takes it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Comparison:
    """One comparison; the first two fields are its shape, the others its values."""

    name: str
    operator: str
    key: str
    value: str | datetime
