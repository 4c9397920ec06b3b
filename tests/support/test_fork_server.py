"""A forked command is what the same command is as an interpreter of its own."""

import asyncio
import signal

import grpc.aio
import pytest

from tests.support.commands import (
    address_in,
    environment,
    finish,
    server_process,
    start_command,
    start_interpreter,
)
from tests.support.service import Service


@pytest.mark.parametrize(
    "arguments",
    [
        ("swerve",),  # usage, which names the program
        ("healthcheck", "--target", "127.0.0.1:1"),
    ],
)
async def test_it_says_what_the_interpreter_says(arguments: tuple[str, ...]) -> None:
    """Exit code, output and errors are the same."""
    started = (start_command, start_interpreter)
    ended = [await finish(await start(*arguments, **environment())) for start in started]
    assert ended[0] == ended[1]
    assert 0 != ended[0][0]


async def test_it_has_an_environment_of_its_own(service: Service) -> None:
    """Settings of one command are not there for the next."""
    wrong = await finish(await start_command("serve", **environment(service.url, pool_size="none")))
    assert "CONVERSATIONS_POOL_SIZE" in wrong[2]
    async with server_process(service.url) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert (0, "Stopping …\n", "") == await finish(process)


async def test_it_dies_with_the_process_that_stands_in_for_it(service: Service) -> None:
    """A test that kills a command kills it, although a signal that kills cannot be passed on."""
    async with server_process(service.url) as (process, line):
        process.kill()
        assert -signal.SIGKILL == await process.wait()
        async with grpc.aio.insecure_channel(address_in(line)) as channel, asyncio.timeout(20):
            while channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await channel.wait_for_state_change(channel.get_state())
