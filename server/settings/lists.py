"""Lists and mappings as the text of one setting, `a,b` and `a=b,c=d`."""

from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_settings import NoDecode


def split(value: Any) -> Any:
    """The parts of a comma-separated text, without spaces around them; any other value as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_pairs(value: Any) -> Any:
    """``a=b,c=d`` as a mapping; a key may hold `=`, a value may not."""
    if not isinstance(value, str):
        return value
    pairs = [part.rpartition("=") for part in split(value)]
    if len({key for key, _, _ in pairs}) < len(pairs) or not all(key for key, _, _ in pairs):
        raise ValueError("must be claim=attribute, comma separated, each claim once")
    return {key: name for key, _, name in pairs}


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_split_pairs)]
