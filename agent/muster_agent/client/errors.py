"""What a client meets; all of it is a MusterError.

MusterError
└── ClientError
    ├── Unreachable       nobody answers at the path: start the agent, or name its socket
    ├── Refused           the agent answered, but not with an inference (`status` as in HTTP)
    │   ├── TokenRefused      the token is missing or wrong
    │   ├── ModelUnknown      no such model, or version, serves there
    │   ├── InputRefused      the input does not fit the model; sending it again is of no use
    │   ├── SchemaChanged     a release with other inputs took over; look at `model.release`, then send anew
    │   ├── Overloaded        too much is waiting; try again after `retry_after_s`
    │   ├── TooLate           it did not run within its timeout
    │   └── InferenceFailed   the engine, or the agent, failed
    └── ProtocolBroken    what came is no frame of this protocol: agent and client do not fit each other
"""

from muster_shared.errors import MusterError


class ClientError(MusterError):
    """Anything that keeps a client from its answer."""


class Unreachable(ClientError):
    """The agent cannot be reached, or is gone and did not come back in time."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"no agent answers at {path} ({reason}); check that it runs, that `http.unix_socket` in its configuration"
            " names this path, and that you may write to it"
        )
        self.path = path
        self.reason = reason


class ProtocolBroken(ClientError):
    """The other side does not speak these frames."""


class Refused(ClientError):
    """The agent refused, or failed; `status` as in HTTP."""

    def __init__(self, message: str, status: int, *, retry_after_s: float = 0.0, tensor: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.tensor = tensor


class TokenRefused(Refused):
    """The agent wants a token, or another one."""


class ModelUnknown(Refused):
    """No release of the model, or not this version, serves there."""


class InputRefused(Refused):
    """The input does not fit the model; `tensor` names it where one is to blame."""


class SchemaChanged(Refused):
    """A release that takes or gives other tensors took over while the request was under way; nothing was run."""


class Overloaded(Refused):
    """More is waiting than the agent takes; try again after `retry_after_s`."""


class TooLate(Refused):
    """It did not run within its timeout."""


class InferenceFailed(Refused):
    """The engine, or the agent itself, failed."""


_BY_STATUS: dict[int, type[Refused]] = {
    400: InputRefused,
    401: TokenRefused,
    403: TokenRefused,
    404: ModelUnknown,
    409: SchemaChanged,
    413: InputRefused,
    429: Overloaded,
    500: InferenceFailed,
    503: Overloaded,
    504: TooLate,
}


def refused(status: int, message: str, *, retry_after_s: float = 0.0, tensor: str = "") -> Refused:
    """Return the error that `status` stands for."""
    return _BY_STATUS.get(status, Refused)(message, status, retry_after_s=retry_after_s, tensor=tensor)
