"""The error of this package."""

_MAX_KEY = 64


class ItemJsonError(ValueError):
    """JSON that is not an item: the rule that it breaks, and the path of the value that breaks it.

    Both may go into an error message or a log: they contain no value, and no key that could be content.
    """

    def __init__(self, rule: str, path: str = "") -> None:
        super().__init__(f"{path}: {rule}" if path else rule)
        self.rule = rule
        self.path = path

    def inside(self, step: str | int) -> "ItemJsonError":
        """The same error with ``step``, a key or an index, put in front of the path."""
        here = f"[{step}]" if isinstance(step, int) else _shown(step)
        joint = "" if not self.path or self.path.startswith("[") else "."
        return ItemJsonError(self.rule, f"{here}{joint}{self.path}")


class RoleMissing(ItemJsonError):
    """A message that does not say whose it is."""


def _shown(key: str) -> str:
    # A key of free JSON may be content: only what looks like a field name is shown.
    return key if len(key) <= _MAX_KEY and key.isascii() and key.isidentifier() else "*"
