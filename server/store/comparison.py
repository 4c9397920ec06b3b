"""One comparison of a filter."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column with a value.

    Attributes:
        name: A field of the filter language, such as ``metadata``.
        operator: As in SQL.
        key: Of an entry, for fields that are maps; else empty.
        value: A string, or a time in UTC.
    """

    name: str
    operator: str
    key: str
    value: str | datetime
