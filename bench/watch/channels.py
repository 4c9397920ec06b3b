"""Connections to a server."""

import grpc.aio


def opened_channels(address: str, count: int) -> list[grpc.aio.Channel]:
    """Returns channels that have a connection each; gRPC would share one among them otherwise."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
