"""The client of the agent on the same device, over its Unix socket: blocking, asyncio, or through shared memory.

No agent runs in here, and nothing of HTTP: what programs in other languages ask over HTTP is in `docs/protocol`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # At run time each is imported by its first use: the agent itself needs only the frames.
    from muster_agent.client.asynchronous import AsyncClient, AsyncModel
    from muster_agent.client.blocking import Client
    from muster_agent.client.dialogue import Answer
    from muster_agent.client.errors import (
        ClientError,
        InferenceFailed,
        InputRefused,
        ModelUnknown,
        Overloaded,
        ProtocolBroken,
        Refused,
        SchemaChanged,
        TokenRefused,
        TooLate,
        Unreachable,
    )
    from muster_agent.client.layout import RegionInvalid
    from muster_agent.client.model import Model, Pending
    from muster_agent.client.schema import Release
    from muster_agent.client.shared import SharedModel, SharedRun

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncModel",
    "Client",
    "ClientError",
    "InferenceFailed",
    "InputRefused",
    "Model",
    "ModelUnknown",
    "Overloaded",
    "Pending",
    "ProtocolBroken",
    "Refused",
    "RegionInvalid",
    "Release",
    "SchemaChanged",
    "SharedModel",
    "SharedRun",
    "TokenRefused",
    "TooLate",
    "Unreachable",
]

_HOMES = {
    "AsyncClient": "asynchronous",
    "AsyncModel": "asynchronous",
    "Client": "blocking",
    "Answer": "dialogue",
    "RegionInvalid": "layout",
    "Model": "model",
    "Pending": "model",
    "Release": "schema",
    "SharedModel": "shared",
    "SharedRun": "shared",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
