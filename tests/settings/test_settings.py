"""Settings come from flags and the environment; what is wrong is told whole, and without the values."""

import re
from pathlib import Path
from typing import Any

import pytest

from server.settings.addresses import Address
from server.settings.environment import variable_of as variable
from server.settings.operations import PROD
from server.settings.service import Settings, SettingsInvalid, load

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-very-secret"
WRONG = {
    "listen": f"nowhere-{SECRET}",
    "database_url": f"mysql://user:{SECRET}@host/db",
    "pgbouncer_url": f"mysql://user:{SECRET}@host/db",
    "migrate": f"maybe-{SECRET}",
    "workers": "-77123",
    "pool_size": "-77123",
    "statement_timeout_seconds": f"long-{SECRET}",
    "purge_after_hours": "-77123",
    "purge_every_minutes": "-77123",
    "activity": f"maybe-{SECRET}",
    "request_id_hours": "-77123",
    "unsafe_durability": f"maybe-{SECRET}",
    "identity": f"trust-{SECRET}",
    "attribute_names": f"Roles {SECRET}",
    "jwt_jwks": f"ftp://{SECRET}",
    "jwt_algorithms": f"HS256-{SECRET}",
    "jwt_attribute_claims": f"{SECRET}",
    "mtls_trust_domains": f"NOT {SECRET}",
    "mtls_subjects": f"maybe-{SECRET}",
    "proxy_spiffe_ids": f"NOT {SECRET}",
    "proxy_require_tenant": f"maybe-{SECRET}",
    "max_message_bytes": "-77123",
    "compressed_requests": f"maybe-{SECRET}",
    "max_item_bytes": f"much-{SECRET}",
    "max_metadata_bytes": "-77123",
    "max_calls_per_connection": "-77123",
    "max_calls": "-77123",
    "max_streams": "-77123",
    "max_streams_per_principal": "-77123",
    "max_watches": "-77123",
    "max_exports": "-77123",
    "max_exports_per_principal": "-77123",
    "max_watches_per_principal": "-77123",
    "watch_seconds": "-77123",
    "default_deadline_seconds": "-77123",
    "max_deadline_seconds": "-77123",
    "connection_age_seconds": "-77123",
    "connection_age_grace_seconds": "-77123",
    "connection_idle_seconds": "-77123",
    "keepalive_seconds": "-77123",
    "keepalive_timeout_seconds": "-77123",
    "min_ping_interval_seconds": "-77123",
    "grace_seconds": "-77123",
    "http_listen": f"nowhere-{SECRET}",
    "http_hosts": f"no name {SECRET}",
    "http_idle_seconds": "-77123",
    "http_max_connections": "-77123",
    "http_gzip_bytes": "-77123",
    "profile": f"test-{SECRET}",
    "reflection": f"maybe-{SECRET}",
    "admin_listen": f"nowhere-{SECRET}",
    "metrics_listen": f"nowhere-{SECRET}",
    "tracing": f"maybe-{SECRET}",
    "access_log": f"maybe-{SECRET}",
    "log_level": f"loud-{SECRET}",
    "log_format": f"xml-{SECRET}",
    "audit_permits": f"maybe-{SECRET}",
    "allow_anonymous": f"maybe-{SECRET}",
}
ANY_VALUE_IS_RIGHT = {
    "data_dir",
    "jwt_issuer",
    "jwt_audience",
    "jwt_tenant_claim",
    "policy_file",
    "principals_file",
    "retention_file",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own environment says nothing."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)


def listened(settings: Settings) -> tuple[str, ...]:
    """The addresses to listen on, as text."""
    return tuple(map(str, settings.listen))


def refusal(**flags: Any) -> str:
    """What is told of wrong settings."""
    with pytest.raises(SettingsInvalid) as caught:
        load(**flags)
    return str(caught.value)


def test_every_setting_can_be_wrong() -> None:
    """The table of wrong values has every setting."""
    assert set(Settings.model_fields) - ANY_VALUE_IS_RIGHT == set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A wrong setting is one line with its name, its variable and its rule, and without its value."""
    monkeypatch.setenv(variable(name), WRONG[name])
    told = refusal()
    assert re.fullmatch(rf"{name} \({variable(name)}\): .+", told)
    assert WRONG[name] not in told
    assert SECRET not in told
    assert "77123" not in told


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has several settings wrong learns of all of them the first time."""
    for name, value in WRONG.items():
        monkeypatch.setenv(variable(name), value)
    told = refusal().splitlines()
    wrong = [name for name in Settings.model_fields if name in WRONG]
    assert [f"{name} ({variable(name)})" for name in wrong] == [line.partition(":")[0] for line in told]


@pytest.mark.parametrize("name", ["statement_timeout_seconds", "max_deadline_seconds", "purge_after_hours"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_a_time_is_a_time(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A number that no clock can count is refused at the start, not when it is first needed."""
    monkeypatch.setenv(variable(name), value)
    assert variable(name) in refusal()


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that is given counts, one that is not leaves the environment's value."""
    monkeypatch.setenv(variable("listen"), "127.0.0.1:1")
    monkeypatch.setenv(variable("pool_size"), "3")
    found = load(listen="127.0.0.1:2", pool_size=None)
    assert (("127.0.0.1:2",), 3) == (listened(found), found.pool_size)


def test_a_wrong_variable_behind_a_flag_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flag replaces need not be right."""
    monkeypatch.setenv(variable("listen"), "nowhere")
    assert ("127.0.0.1:2",) == listened(load(listen="127.0.0.1:2"))


def test_the_database_url_is_a_secret() -> None:
    """Neither the settings nor a dump of them show the password."""
    found = load(database_url=f"postgresql://user:{SECRET}@host/db")
    assert SECRET not in f"{found!r} {found} {found.model_dump()} {found.model_dump_json()}"
    assert found.database_url is not None
    assert SECRET in found.database_url.get_secret_value()


def test_pgbouncer_needs_the_database_behind_it() -> None:
    """Migrations and the purge keep session locks: the address of PgBouncer alone is not enough."""
    url = f"postgresql://user:{SECRET}@host/db"
    told = refusal(pgbouncer_url=url)
    assert variable("pgbouncer_url") in told
    assert variable("database_url") in told
    assert SECRET not in f"{told} {load(database_url=url, pgbouncer_url=url)!r}"


LOCAL = ["127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:50051", "unix:/tmp/socket", "unix:socket"]
PUBLIC = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "localhost.example.org:1", "*:1"]


@pytest.mark.parametrize("listen", LOCAL)
def test_anyone_here_is_served(listen: str) -> None:
    """An address that only this machine reaches needs no identity."""
    assert (listen,) == listened(load(listen=listen))


@pytest.mark.parametrize("listen", PUBLIC)
def test_anyone_elsewhere_is_not_served(listen: str) -> None:
    """An address that others reach is refused by name, until anonymous callers are allowed."""
    told = refusal(listen=listen)
    assert variable("listen") in told
    assert "allow_anonymous" in told.lower()
    assert (listen,) == listened(load(listen=listen, allow_anonymous=True))


def test_a_public_address_is_told_with_the_rest() -> None:
    """A missing permission to serve others is not hidden by another wrong setting."""
    told = refusal(listen="0.0.0.0:1", pool_size=0)
    assert variable("pool_size") in told
    assert variable("listen") in told


@pytest.mark.parametrize("listen", ["", "host", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "unix:", "::1"])
def test_an_address_has_a_form(listen: str) -> None:
    """What is no host with a port and no socket is refused."""
    assert variable("listen") in refusal(listen=listen)


def test_several_addresses() -> None:
    """Addresses are separated by commas; one that others reach is seen among those that they do not."""
    assert ("127.0.0.1:1", "unix:/tmp/socket") == listened(load(listen="127.0.0.1:1, unix:/tmp/socket"))
    assert "allow_anonymous" in refusal(listen="127.0.0.1:1,0.0.0.0:1").lower()
    assert variable("listen") in refusal(listen="127.0.0.1:1,127.0.0.1:1")
    assert variable("workers") in refusal(listen="127.0.0.1:1,unix:/tmp/socket", workers=2)


PRODUCTION = {
    "reflection": False,
    "admin_listen": Address("127.0.0.1", 50052),
    "metrics_listen": Address("127.0.0.1", 9464),
    "log_format": "json",
}


def test_a_profile_is_what_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of production sets what nobody else has set, by flag or variable."""
    assert PRODUCTION == {name: getattr(load(profile="prod"), name) for name in PRODUCTION}
    monkeypatch.setenv(variable("profile"), "prod")
    monkeypatch.setenv(variable("reflection"), "true")
    monkeypatch.setenv(variable("admin_listen"), "")
    assert (True, None, "json") == (load().reflection, load().admin_listen, load().log_format)


@pytest.mark.parametrize("listen", ["0.0.0.0:50052", "10.0.0.1:1", "[::]:1", "*:1"])
def test_operators_are_on_this_machine(listen: str) -> None:
    """The admin address asks nobody who they are: nobody else reaches it."""
    assert variable("admin_listen") in refusal(admin_listen=listen, allow_anonymous=True)
    assert Address("::1", 1) == load(admin_listen="[::1]:1").admin_listen


@pytest.mark.parametrize("name", ["admin_listen", "metrics_listen"])
def test_each_worker_has_a_port(name: str) -> None:
    """The last worker's port is a port."""
    assert variable(name) in refusal(**{name: "127.0.0.1:65533"}, workers=4)
    assert load(**{name: "127.0.0.1:65532"}, workers=4)


def test_settings_do_not_change() -> None:
    """What the process was told holds until it ends."""
    found = load()
    with pytest.raises(ValueError, match="frozen"):
        found.pool_size = 1


ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| .+ \|$", re.MULTILINE)
NOT_A_CONSTANT = {"data_dir", "max_calls", "jwt_attribute_claims"}  # their defaults follow from something else


def documented(page: str) -> dict[str, str]:
    """The settings that a page lists, each with its default."""
    rows = ROW.findall((ROOT / page).read_text(encoding="utf-8"))
    found = {name: default for name, default in rows if name in Settings.model_fields}
    assert len(found) == len([name for name, _ in rows if name in Settings.model_fields]), "a setting is listed twice"
    return found


def printed(default: Any) -> str:
    """A default as the tables print it."""
    match default:
        case None | "" | ():
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case int() if default >= 1024 and default % 1024 == 0:
            return f"{default // 2**20} MiB" if default % 2**20 == 0 else f"{default // 2**10} KiB"
        case float():
            return f"`{default:g}`"
        case tuple():
            return f"`{','.join(map(str, default))}`"
        case _:
            return f"`{default}`"


def test_every_setting_is_documented() -> None:
    """docs/configuration.md lists each setting once."""
    assert set(Settings.model_fields) == set(documented("docs/configuration.md"))


def test_the_documented_defaults_are_those_of_the_code() -> None:
    """A default in docs/configuration.md is the one that holds when nothing is set, and in `prod`."""
    expected = {}
    for name, field in Settings.model_fields.items():
        default = printed(field.default)
        expected[name] = f"{default}; in `prod` {printed(PROD[name])}" if name in PROD else default
    told = documented("docs/configuration.md")
    assert {name: expected[name] for name in told if name not in NOT_A_CONSTANT} == {
        name: default for name, default in told.items() if name not in NOT_A_CONSTANT
    }


def test_the_readme_repeats_what_the_table_says() -> None:
    """The README's ten settings have the defaults of docs/configuration.md."""
    ten = documented("README.md")
    assert 10 == len(ten)
    assert ten.items() <= documented("docs/configuration.md").items()


def test_every_setting_is_described() -> None:
    """Each setting says what it is."""
    assert [] == [name for name, each in Settings.model_fields.items() if not each.description]
