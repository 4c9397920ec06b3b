"""Makes principals of what a source has verified, within the limits."""

from collections.abc import Collection, Iterable, Mapping

from server.errors import CredentialsInvalid
from server.identity.lru import LruCache
from server.policy.principal import Principal

LOCAL_ID = "local"  # of all callers without identity; reserved with identity
MAX_BYTES = 256  # of an id, a tenant, an attribute's value
MAX_VALUES = 256  # of all attributes together
_REMEMBERED = 10_000


class Principals:
    """Makes principals; equal ones are the same object, which caches compare at no cost.

    Args:
        names: The attributes there are; values of any other name are left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._known: LruCache[Principal, Principal] = LruCache(_REMEMBERED)

    def of(self, tenant: str, identifier: str, attributes: Mapping[str, Collection[str]]) -> Principal:
        """Returns the principal.

        Raises:
            CredentialsInvalid: An empty id or value, U+0000, more than the limits, or a reserved id.
        """
        own = {name: values for name, values in attributes.items() if name in self.names}
        if sum(map(len, own.values())) > MAX_VALUES:
            raise CredentialsInvalid("too many attribute values")
        texts = [identifier, *(value for values in own.values() for value in values)]
        if not (all(map(is_valid_name, texts)) and (not tenant or is_valid_name(tenant))):
            raise CredentialsInvalid("id, tenant or attribute value")
        if identifier == LOCAL_ID:
            # It owns what was made without identity; nobody may become the owner by having that name.
            raise CredentialsInvalid(f"the id {LOCAL_ID} is reserved")
        made = Principal(tenant, identifier, {name: frozenset(values) for name, values in own.items()})
        known = self._known.get(made)
        if known is None:
            self._known.put(made, made)
        return known or made


def attributes_of(claims: Mapping[str, object], renamed: Mapping[str, str]) -> dict[str, set[str]]:
    """Returns the attributes in ``claims``; ``renamed`` maps claims to attributes, several to one if need be.

    Raises:
        CredentialsInvalid: A claim is neither a text nor a list of texts.
    """
    found: dict[str, set[str]] = {}
    for claim, name in renamed.items():
        found.setdefault(name, set()).update(_texts(claims.get(claim)))
    return found


def _texts(value: object) -> list[str]:
    values: list[object] = [] if value is None else value if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str)]
    if len(texts) < len(values):
        raise CredentialsInvalid("attribute claim")
    return texts


def is_valid_name(text: str) -> bool:
    """Returns whether an id, a tenant or a value has a length that is allowed, and PostgreSQL can store it.

    JSON may hold lone surrogates, which are no text.
    """
    try:
        return 0 < len(text.encode()) <= MAX_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False
