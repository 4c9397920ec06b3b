"""Settings of identity and TLS, and the combinations of them that are errors."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from server.policy.attributes import ATTRIBUTE_NAME
from server.policy.rules import ATTRIBUTES
from server.settings.addresses import Address, is_loopback
from server.settings.lists import Names, Pairs

JWT_ALGORITHMS = frozenset(
    # Asymmetric ones only: the key that verifies a signature must not be able to make one.
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
)
_SETTINGS_OF = {  # by source of identity
    "jwt": ("jwt_issuer", "jwt_audience", "jwt_jwks", "jwt_algorithms", "jwt_tenant_claim", "jwt_attribute_claims"),
    "mtls": ("mtls_trust_domains", "mtls_subjects", "principals_file"),
    "proxy": ("proxy_spiffe_ids", "proxy_require_tenant"),
}


class IdentitySettings(BaseSettings):
    """How callers are authenticated, and how connections are encrypted."""

    identity: Literal["none", "jwt", "mtls", "proxy"] = Field(
        "none", description="What authenticates callers; `none`: every caller is `local`."
    )
    attribute_names: Names = Field(ATTRIBUTES, description="The attributes of a principal; others are left out.")
    jwt_issuer: str = Field("", description="`iss` of every token.")
    jwt_audience: str = Field("", description="One of the `aud` of every token.")
    jwt_jwks: str = Field("", description="The issuer's JWK Set: a file, or an https URL.")
    jwt_algorithms: Names = Field(("RS256", "ES256", "EdDSA"), description="Signatures that are accepted.")
    jwt_tenant_claim: str = Field("", description="Claim with the tenant, then required; unset: one tenant.")
    jwt_attribute_claims: Pairs = Field(
        {name: name for name in ATTRIBUTES},
        description="Which claim is which attribute, `groups=teams,roles=roles`.",
    )
    mtls_trust_domains: Names = Field((), description="SPIFFE trust domains whose ids are principals.")
    mtls_subjects: bool = Field(default=False, description="The certificate's subject is the id, not a SPIFFE id.")
    principals_file: Path | None = Field(
        None, description="YAML with tenant and attributes of each id of `mtls`; other ids are refused."
    )
    proxy_spiffe_ids: Names = Field((), description="SPIFFE ids of trusted proxies; a Unix socket is trusted without.")
    proxy_require_tenant: bool | None = Field(
        None, description="Refuse calls without `x-tenant`; unset: once there are tenants."
    )
    tls_certificate: Path | None = Field(None, description="The server's certificate chain, PEM; unset: no TLS.")
    tls_key: Path | None = Field(None, description="Its private key, PEM.")
    tls_client_ca: Path | None = Field(None, description="CAs of client certificates, PEM; set: each client needs one.")

    @field_validator("attribute_names")
    @classmethod
    def _require_attribute_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 16 or not all(map(ATTRIBUTE_NAME.fullmatch, value)):
            raise ValueError("must be at most 16 names of a-z, 0-9 and _, each beginning with a letter")
        return value

    @field_validator("jwt_algorithms")
    @classmethod
    def _require_asymmetric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not JWT_ALGORITHMS.issuperset(value):
            raise ValueError(f"must be some of {', '.join(sorted(JWT_ALGORITHMS))}")
        return value

    @field_validator("jwt_jwks")
    @classmethod
    def _require_file_or_https(cls, value: str) -> str:
        if "://" not in value:
            return value
        url = urlsplit(value)
        safe = url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname or ""))
        if not safe or not url.hostname or "@" in url.netloc:
            raise ValueError("must be a file or an https URL without a user; http only for loopback")
        return value

    @field_validator("mtls_trust_domains", "proxy_spiffe_ids")
    @classmethod
    def _require_spiffe(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"(spiffe://)?[a-z0-9._-]+(/[A-Za-z0-9._/-]+)?", name):
                raise ValueError("must be SPIFFE trust domains, or SPIFFE ids")
        return value


Listeners: TypeAlias = Mapping[str, Sequence[Address]]  # what callers reach, by the name of its setting


def identity_problems(settings: IdentitySettings, listeners: Listeners) -> list[str]:
    """Returns a sentence for each combination of settings that is an error."""
    by_source = {"jwt": _jwt_problems, "mtls": _mtls_problems, "proxy": _proxy_problems}
    check = by_source.get(settings.identity)
    return [
        *_settings_of_other_sources(settings),
        *(check(settings, listeners) if check else ()),
        *_tls_problems(settings),
    ]


def _settings_of_other_sources(settings: IdentitySettings) -> Iterable[str]:
    """Finds settings of another source than the configured one: whoever set them believes that they apply."""
    for source, names in _SETTINGS_OF.items():
        if source != settings.identity:
            given = [name for name in names if name in settings.model_fields_set and getattr(settings, name)]
            yield from (f"{name}: belongs to identity={source}, but identity={settings.identity}" for name in given)


def _jwt_problems(settings: IdentitySettings, _listeners: Listeners) -> Iterable[str]:
    for name in ("jwt_issuer", "jwt_audience", "jwt_jwks"):
        if not getattr(settings, name):
            yield f"{name}: identity=jwt needs it"
    for name in sorted(set(settings.jwt_attribute_claims.values()) - set(settings.attribute_names)):
        # The default map has names that the operator may have removed from attribute_names.
        if "jwt_attribute_claims" in settings.model_fields_set:
            yield f"jwt_attribute_claims: {name} is not in attribute_names"


def _mtls_problems(settings: IdentitySettings, listeners: Listeners) -> Iterable[str]:
    for name, addresses in listeners.items():
        if any(each.is_unix for each in addresses):
            yield f"{name}: identity=mtls needs host:port; TLS is not served on a Unix socket"
    if not settings.tls_client_ca:
        yield "tls_client_ca: identity=mtls needs it"
    if bool(settings.mtls_trust_domains) == settings.mtls_subjects:
        yield "mtls_trust_domains: identity=mtls needs either this or mtls_subjects"
    if any("/" in name for name in settings.mtls_trust_domains):
        yield "mtls_trust_domains: must be names such as prod.example, without spiffe:// and path"


def _proxy_problems(settings: IdentitySettings, listeners: Listeners) -> Iterable[str]:
    for name, addresses in listeners.items():
        if not (settings.proxy_spiffe_ids or all(each.is_unix for each in addresses)):
            yield f"{name}: identity=proxy trusts a Unix socket; set nothing else, or proxy_spiffe_ids"
    if settings.proxy_spiffe_ids and not settings.tls_client_ca:
        yield "tls_client_ca: proxy_spiffe_ids needs it"
    if not all(name.startswith("spiffe://") for name in settings.proxy_spiffe_ids):
        yield "proxy_spiffe_ids: must begin with spiffe://"


def _tls_problems(settings: IdentitySettings) -> Iterable[str]:
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        yield "tls_certificate: goes together with tls_key"
    if settings.tls_client_ca and not settings.tls_certificate:
        yield "tls_client_ca: needs tls_certificate and tls_key"
