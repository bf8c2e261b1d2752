"""Who may ask, for how much and how urgently: tokens, rates and the best class of each caller.

    Authorization: Bearer T ──sha256──> [[serving.clients]] ──> Caller      one for all connections of a client
    without                 ──────────> by peer             ──> Caller      one a peer, the longest unseen are forgotten

    [[serving.clients]]
    name = "inspection"
    token_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"   # printf %s "$TOKEN" | sha256sum
    rows_per_s = 200
    burst = 400
    priority_max = "soon"            # now | soon | later

Only digests of tokens are configured and kept. A front asks once a connection and token, and keeps the Caller. It knows
no models and reads no clock.
"""

import hashlib
import hmac
import math
from collections import OrderedDict

from muster_agent.core.rate import Meter, meter
from muster_agent.serving.call import Priority
from muster_agent.serving.config import PRIORITIES, Limit, ServingConfig
from muster_shared.errors import MusterError

PEERS_MAX = 1024
TOKEN_BYTES_MAX = 4096
CHALLENGE = (b"WWW-Authenticate", b'Bearer realm="muster-agent"')
"""The header that comes with a 401."""


class TokenRefused(MusterError):
    """No token where one is needed, or none that is known."""


class RateExceeded(MusterError):
    """The caller asked for more rows than it may; nothing was queued."""

    def __init__(self, caller: str, wait_s: float) -> None:
        super().__init__(f"{caller} asks for more rows a second than it may; try again in {wait_s:.3g} s")
        self.caller = caller
        self.retry_after_s = max(1, math.ceil(wait_s))


class BurstExceeded(MusterError):
    """One request has more rows than the caller may ever send at once."""

    def __init__(self, caller: str, rows: int) -> None:
        super().__init__(f"{caller} may not send {rows} rows at once; send smaller batches")
        self.caller = caller
        self.rows = rows


class Caller:
    """One client, or one peer without a token."""

    __slots__ = ("_meter", "name", "priority_max")

    def __init__(self, name: str, meter: Meter, priority_max: Priority = Priority.NOW) -> None:
        self.name = name
        self.priority_max = priority_max
        self._meter = meter

    def take(self, rows: int, now_ns: int) -> None:
        """Count `rows` that are asked for now, on a monotonic clock.

        Raises:
            RateExceeded: they are too many for now. Nothing is counted.
            BurstExceeded: they are too many for one request.
        """
        wait_s = self._meter.take(rows, now_ns)
        if wait_s:
            raise RateExceeded(self.name, wait_s) if wait_s < math.inf else BurstExceeded(self.name, rows)

    def priority(self, asked: int) -> int:
        """Return the class in which a request is served that asks for `asked`."""
        return asked if asked >= self.priority_max else self.priority_max


class Admission:
    """All callers of this device. Used on the serving loop only."""

    def __init__(self, config: ServingConfig, peers_max: int = PEERS_MAX) -> None:
        self._clients = tuple((client.token_sha256, _caller(client.name, client)) for client in config.clients)
        self._require_token = config.require_token
        self._anonymous = config.anonymous
        self._everybody = _caller("anonymous", config.anonymous) if not config.anonymous.rows_per_s else None
        self._peers: OrderedDict[str, Caller] = OrderedDict()
        self._peers_max = peers_max

    def caller(self, token: bytes | None, peer: str) -> Caller:
        """Return who asks.

        Args:
            token: As `bearer` returned it.
            peer: What tells callers without a token apart: the address without port, or the user of a Unix socket.
        Raises:
            TokenRefused: it is not known, or none came and one is needed.
        """
        if token is not None:
            return self._client(token)
        if self._require_token:
            raise TokenRefused("a token is needed: send Authorization: Bearer TOKEN, as the device's operator gave it")
        if self._everybody is not None:
            return self._everybody
        caller = self._peers.get(peer)
        if caller is None:
            caller = self._peers[peer] = _caller(f"anonymous ({peer[:64]})", self._anonymous)
            if len(self._peers) > self._peers_max:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(peer)
        return caller

    def _client(self, token: bytes) -> Caller:
        digest = hashlib.sha256(token).hexdigest()
        found = None
        for expected, caller in self._clients:  # All of them, so that the time tells nothing.
            if hmac.compare_digest(expected, digest):
                found = caller
        if found is None:
            raise TokenRefused("the token is not known on this device; ask its operator for one")
        return found


def bearer(authorization: bytes | None) -> bytes | None:
    """Return the token in the value of an `Authorization` header; None when there is no header.

    Raises:
        TokenRefused: it is of another scheme, empty or too long.
    """
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or len(token) > TOKEN_BYTES_MAX:
        raise TokenRefused("the Authorization header is not understood: send Authorization: Bearer TOKEN")
    return token


def _caller(name: str, limit: Limit) -> Caller:
    return Caller(name, meter(limit.rows_per_s, limit.burst), PRIORITIES[limit.priority_max])
