"""How this device serves: the `[serving]` section of `agent.toml`. Everything has a default; it detects nothing.

[serving]
queue_max = 256                  # rows of one model that may wait
later_window = "22:00-06:00"     # when batch work may run; empty: whenever the device is idle

[[serving.clients]]
name = "inspection"
token_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
rows_per_s = 200
priority_max = "soon"

[serving.upstream]               # takes what exceeds the queues
url = "http://10.0.0.5:8000"

[serving.models.digits]
pinned = true                    # never unloaded to make room
"""

import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from muster_agent.core.breaker import BreakerSettings
from muster_agent.serving.call import Priority
from muster_shared import ids
from muster_shared.errors import WireError

CLIENTS_MAX = 256
ROWS_MAX = 1_000_000
INSTANCES_MAX = 256
TIMEOUT_S_MAX = 3600.0

PriorityName = Literal["now", "soon", "later"]
PRIORITIES: dict[str, Priority] = {"now": Priority.NOW, "soon": Priority.SOON, "later": Priority.LATER}

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers without a token may ask for, each peer by itself."""

    rows_per_s: float = 0.0
    """0: no limit."""
    burst: int = 0
    """Rows at once; 0: what a second allows."""
    priority_max: PriorityName = "now"
    """The best class; what asks for a better one is served in this one."""


class ClientConfig(Limit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One application that has a token."""

    name: str
    token_sha256: str
    """Hex, of the token's bytes: `printf %s "$TOKEN" | sha256sum`."""


class QueueTimeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a request of each class may wait for its turn, in ms; 0: as long as `timeout_s` allows."""

    now: int = 0
    soon: int = 0
    later: int = 0


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The V2 endpoint that takes what exceeds the queues. Requests leave the device only when it is named."""

    url: str
    """http[s]://host[:port][/prefix]."""
    token: str = ""
    in_flight: int = 8
    timeout_s: float = 5.0
    response_bytes_max: int = 16 * 1024 * 1024


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where OpenTelemetry spans go; needs the extra `otel`."""

    endpoint: str
    """Of a collector: http[s]://host:4318/v1/traces."""
    root_share: float = 0.0
    """Share (0..1) of the requests that come without a trace and begin one; those with a sampled one are traced."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this device wants of one model, above what the release says; 0 is the release's or the measured choice."""

    priority: PriorityName | None = None
    """The class of requests that name none."""
    instances_max: int = 0
    batch_max: int = 0
    cpu_share: float = 0.0
    """Of all processors, above 0 to 1, at most."""
    pinned: bool = False
    """Never unloaded to make room."""


class ServingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[serving]`."""

    queue_max: int = 256
    """Rows of one model that may wait or run."""
    timeout_s: float = 30.0
    """From the whole request to its answer."""
    queue_timeout_ms: QueueTimeouts = QueueTimeouts()
    clients: tuple[ClientConfig, ...] = ()
    require_token: bool = False
    anonymous: Limit = Limit()
    breaker: BreakerSettings = BreakerSettings()
    cache_bytes: int = 16 * 1024 * 1024
    """Of each model whose release may be cached; 0: none is."""
    sequences_max: int = 256
    """Of each stateful model, under way at once."""
    sequence_idle_s: float = 60.0
    memory_budget_mb: int = 0
    """Of all models together, above which the longest unused is unloaded; 0: no limit."""
    later_window: str = ""
    """Local time, HH:MM-HH:MM, also over midnight."""
    slow_request_ms: float = 0.0
    """Requests that take longer are logged; 0: none is."""
    upstream: UpstreamConfig | None = None
    tracing: TracingConfig | None = None
    models: dict[str, ModelConfig] = {}

    def model(self, name: str) -> ModelConfig:
        return self.models.get(name, _PLAIN)


_PLAIN = ModelConfig()


def problem(config: ServingConfig) -> str | None:
    """Return what is wrong with `config`, the first thing, by field."""
    return (
        _range("queue_max", config.queue_max, 1, ROWS_MAX)
        or _range("timeout_s", config.timeout_s, 0.001, TIMEOUT_S_MAX)
        or _range("queue_timeout_ms.now", config.queue_timeout_ms.now, 0, int(TIMEOUT_S_MAX) * 1000)
        or _range("queue_timeout_ms.soon", config.queue_timeout_ms.soon, 0, int(TIMEOUT_S_MAX) * 1000)
        or _range("queue_timeout_ms.later", config.queue_timeout_ms.later, 0, int(TIMEOUT_S_MAX) * 1000)
        or _clients_problem(config)
        or _limit_problem("anonymous", config.anonymous)
        or _breaker_problem(config.breaker)
        or _range("cache_bytes", config.cache_bytes, 0, 1 << 40)
        or _range("sequences_max", config.sequences_max, 1, ROWS_MAX)
        or _range("sequence_idle_s", config.sequence_idle_s, 0.001, 86_400.0)
        or _range("memory_budget_mb", config.memory_budget_mb, 0, 1 << 24)
        or (None if in_window(config.later_window, 0) is not None else _window_problem(config.later_window))
        or _range("slow_request_ms", config.slow_request_ms, 0.0, TIMEOUT_S_MAX * 1000)
        or (None if config.upstream is None else _upstream_problem(config.upstream))
        or (None if config.tracing is None else _tracing_problem(config.tracing))
        or _models_problem(config.models)
    )


def in_window(window: str, minute: int) -> bool | None:
    """Return whether `minute` of the local day (0..1439) is in `window`; None when `window` is none. Empty: always.

    The end is outside; a window whose end is not after its begin goes over midnight.
    """
    if not window:
        return True
    match = _WINDOW.fullmatch(window)
    if match is None:
        return None
    begin_h, begin_m, end_h, end_m = map(int, match.groups())
    begin, end = begin_h * 60 + begin_m, end_h * 60 + end_m
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _range(field: str, value: float, least: float, most: float) -> str | None:
    if least <= value <= most:  # False for a NaN, which TOML can say.
        return None
    return f"serving.{field}: {value:g} is not from {least:g} to {most:g}"


def _limit_problem(field: str, limit: Limit) -> str | None:
    return _range(f"{field}.rows_per_s", limit.rows_per_s, 0.0, 1e9) or _range(
        f"{field}.burst", limit.burst, 0, 1_000_000_000
    )


def _clients_problem(config: ServingConfig) -> str | None:
    if len(config.clients) > CLIENTS_MAX:
        return f"serving.clients: there are {len(config.clients)}; the limit is {CLIENTS_MAX}"
    if config.require_token and not config.clients:
        return "serving.require_token: there are no serving.clients, so nobody could ask"
    names, tokens = set(), set()
    for client in config.clients:
        try:
            ids.name(client.name, "name")
            ids.sha256(client.token_sha256)
        except WireError as error:
            return f"serving.clients: {client.name!r}: {error}"
        if client.name in names or client.token_sha256 in tokens:
            return f"serving.clients: {client.name!r}: another has this name or this token"
        names.add(client.name)
        tokens.add(client.token_sha256)
        found = _limit_problem(f"clients: {client.name}", client)
        if found is not None:
            return found
    return None


def _breaker_problem(breaker: BreakerSettings) -> str | None:
    if not breaker.open_s <= breaker.open_s_max:
        return f"serving.breaker.open_s_max: {breaker.open_s_max:g} is less than open_s, {breaker.open_s:g}"
    return (
        _range("breaker.window_s", breaker.window_s, 0.1, TIMEOUT_S_MAX)
        or _range("breaker.calls_min", breaker.calls_min, 0, ROWS_MAX)
        or _range("breaker.share_max", breaker.share_max, 0.001, 1.0)
        or _range("breaker.open_s", breaker.open_s, 0.001, TIMEOUT_S_MAX)
        or _range("breaker.open_s_max", breaker.open_s_max, 0.001, 86_400.0)
        or _range("breaker.probes", breaker.probes, 1, 1000)
    )


def _window_problem(window: str) -> str:
    return f"serving.later_window: {window!r} is not HH:MM-HH:MM"


def _upstream_problem(upstream: UpstreamConfig) -> str | None:
    try:
        parts = urlsplit(upstream.url)
        _ = parts.port
    except ValueError as error:
        return f"serving.upstream.url: {upstream.url!r}: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"serving.upstream.url: {upstream.url!r} is not http[s]://host[:port][/prefix]"
    if parts.query or parts.fragment or parts.username is not None:
        return "serving.upstream.url: has a query, a fragment or a user; name the token in serving.upstream.token"
    if not (upstream.url.isascii() and upstream.url.isprintable() and " " not in upstream.url):
        return f"serving.upstream.url: {upstream.url!r} has characters that a URL has not"
    if not (upstream.token.isascii() and upstream.token.isprintable() and " " not in upstream.token):
        return "serving.upstream.token: has characters that a token has not"
    return (
        _range("upstream.in_flight", upstream.in_flight, 1, 1000)
        or _range("upstream.timeout_s", upstream.timeout_s, 0.001, TIMEOUT_S_MAX)
        or _range("upstream.response_bytes_max", upstream.response_bytes_max, 1024, 1 << 32)
    )


def _tracing_problem(tracing: TracingConfig) -> str | None:
    parts = urlsplit(tracing.endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return f"serving.tracing.endpoint: {tracing.endpoint!r} is not http[s]://host:port/path"
    return _range("tracing.root_share", tracing.root_share, 0.0, 1.0)


def _models_problem(models: dict[str, ModelConfig]) -> str | None:
    for name, model in models.items():
        try:
            ids.name(name, "model")
        except WireError as error:
            return f"serving.models: {error}"
        found = (
            _range(f"models.{name}.instances_max", model.instances_max, 0, INSTANCES_MAX)
            or _range(f"models.{name}.batch_max", model.batch_max, 0, ROWS_MAX)
            or _range(f"models.{name}.cpu_share", model.cpu_share, 0.0, 1.0)
        )
        if found is not None:
            return found
    return None
