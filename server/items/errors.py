"""The one way in which JSON is refused."""

_MAX_KEY = 64


class ItemJsonError(ValueError):
    """JSON that is no item: where (``path``) and which rule it breaks (``rule``).

    Both are fit for an answer or a log: no value, and no key that could be one.
    """

    def __init__(self, rule: str, path: str = "") -> None:
        super().__init__(f"{path}: {rule}" if path else rule)
        self.rule = rule
        self.path = path

    def inside(self, step: str | int) -> "ItemJsonError":
        """The same error, seen from the object or list that has ``step``."""
        here = f"[{step}]" if isinstance(step, int) else _shown(step)
        joint = "" if not self.path or self.path.startswith("[") else "."
        return ItemJsonError(self.rule, f"{here}{joint}{self.path}")


def _shown(key: str) -> str:
    # Keys of free JSON are content too; only what looks like a field name is shown.
    return key if len(key) <= _MAX_KEY and key.isascii() and key.isidentifier() else "*"
