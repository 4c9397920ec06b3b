"""A variable that looks like a setting and is none stops the start: somebody believes that it applies."""

import pytest

from server.cli.client import Target
from server.settings.environment import COMMAND_VARIABLES, unknown_variables, variable_of
from server.settings.service import Settings, SettingsInvalid, load

SERVICE_LINKS = {
    "CONVERSATIONS_SERVICE_HOST",
    "CONVERSATIONS_SERVICE_PORT",
    "CONVERSATIONS_SERVICE_PORT_GRPC",
    "CONVERSATIONS_PORT",
    "CONVERSATIONS_PORT_50051_TCP",
    "CONVERSATIONS_PORT_50051_TCP_PROTO",
    "CONVERSATIONS_PORT_50051_TCP_PORT",
    "CONVERSATIONS_PORT_50051_TCP_ADDR",
}


def test_unknown_variables_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unknown variable is named with the nearest setting, beside all wrong values, and without its value."""
    monkeypatch.setenv("CONVERSATIONS_TLS_CERT", "/run/secret.pem")
    monkeypatch.setenv("CONVERSATIONS_POOLSIZE", "20")
    monkeypatch.setenv("CONVERSATIONS_XYZZY", "1")
    monkeypatch.setenv("CONVERSATIONS_WORKERS", "0")
    with pytest.raises(SettingsInvalid) as caught:
        load()
    assert [
        "CONVERSATIONS_POOLSIZE: no such setting; did you mean CONVERSATIONS_POOL_SIZE?",
        "CONVERSATIONS_TLS_CERT: no such setting; did you mean CONVERSATIONS_TLS_CERTIFICATE?",
        "CONVERSATIONS_XYZZY: no such setting",
        "workers (CONVERSATIONS_WORKERS): Input should be greater than or equal to 1",
    ] == str(caught.value).splitlines()


def test_unknown_variables_stop_a_start_that_is_right_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mistyped name is enough, also when every other setting is right."""
    monkeypatch.setenv("CONVERSATIONS_TLS_CERT", "/run/secret.pem")
    with pytest.raises(SettingsInvalid, match="CONVERSATIONS_TLS_CERTIFICATE"):
        load()


def test_variables_are_read_in_any_case() -> None:
    """A setting in small letters is read, so one that is mistyped in small letters is told too."""
    assert [] == unknown_variables({"conversations_pool_size"}, Settings.model_fields)
    assert ["conversations_poolsize: no such setting; did you mean CONVERSATIONS_POOL_SIZE?"] == unknown_variables(
        {"conversations_poolsize"}, Settings.model_fields
    )


def test_the_variables_of_commands_are_known() -> None:
    """What the command line reads to reach a service is no mistyped setting of one."""
    options = [f"target_{name}" if name != "target" else name for name in Target.__dataclass_fields__]
    assert {variable_of(name) for name in (*options, "target_token")} == COMMAND_VARIABLES
    assert [] == unknown_variables(COMMAND_VARIABLES, Settings.model_fields)


def test_service_links_of_kubernetes_are_no_settings() -> None:
    """A Service named `conversations` has Kubernetes set variables in every pod of its namespace."""
    assert [] == unknown_variables(SERVICE_LINKS, Settings.model_fields)
    admin = {name.replace("CONVERSATIONS_", "CONVERSATIONS_ADMIN_", 1) for name in SERVICE_LINKS}
    assert [] == unknown_variables(admin, Settings.model_fields)


@pytest.mark.parametrize("name", sorted(SERVICE_LINKS - {"CONVERSATIONS_SERVICE_HOST"}))
def test_without_a_service_there_are_no_links(name: str) -> None:
    """Only beside the host of a Service is a variable one of its links; CONVERSATIONS_PORT alone is a mistake."""
    assert 1 == len(unknown_variables({name}, Settings.model_fields))
    assert 1 == len(unknown_variables({name, "OTHER_SERVICE_HOST"}, Settings.model_fields))


def test_flags_are_settings() -> None:
    """A mistyped name in a call of `load` is an error too."""
    with pytest.raises(SettingsInvalid, match="lisen"):
        load(lisen="127.0.0.1:1")
