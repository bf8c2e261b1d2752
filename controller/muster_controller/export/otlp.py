"""OpenTelemetry: the same families as metrics over OTLP/HTTP with JSON, pushed to a collector.

    every 60 s: families ─ document ─▶ POST <url>/v1/metrics        "lost" is logged once, "back" once

Written by hand after opentelemetry-proto 1.x, metrics/v1: counters are cumulative monotonic sums since this process
began, gauges are gauges. Names stay those of Prometheus, so that one dashboard does for both; a collector that adds
endings of its own has to be told not to. The SDK would bring a second set of counters.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec
import structlog

from muster_controller.errors import ServerUnavailable
from muster_controller.export.families import Family, Kind, Labels
from muster_shared.errors import MusterError

EVERY_S: Final = 60.0
TIMEOUT_S: Final = 10.0
SCOPE: Final = "muster-controller"
CUMULATIVE: Final = 2
_UNITS: Final = (("_seconds", "s"), ("_bytes", "By"), ("_joules", "J"), ("_ratio", "1"), ("_share", "1"))

log = structlog.get_logger()


def document(
    families: Sequence[Family], resource: Mapping[str, str], version: str, began_at: float, now: float
) -> dict[str, Any]:
    """Return an ExportMetricsServiceRequest as JSON has it. Pure.

    Args:
        resource: Attributes of who sends, `service.name` among them.
        began_at: When counting began, Unix seconds.
    """
    metrics = [_metric(each, began_at, now) for each in families if each.samples]
    scope = {"name": SCOPE, "version": version}
    return {
        "resourceMetrics": [
            {
                "resource": {"attributes": _attributes(tuple(resource.items()))},
                "scopeMetrics": [{"scope": scope, "metrics": metrics}],
            }
        ]
    }


def check_url(url: str) -> str:
    """Return where to post. Raises ServerUnavailable: it is no such URL, or has a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ServerUnavailable("--otlp-url is that of a collector, such as http://127.0.0.1:4318, without a password")
    return url.rstrip("/") + ("" if parts.path.endswith("/v1/metrics") else "/v1/metrics")


class Pusher:
    """Sends what `families` gives to a collector, from `start` to `stop`, on a thread of its own."""

    def __init__(
        self,
        url: str,
        families: Callable[[], Sequence[Family]],
        resource: Mapping[str, str],
        version: str,
        clock: Callable[[], float],
        every_s: float = EVERY_S,
    ) -> None:
        """Raises ServerUnavailable: as `check_url`."""
        self._url = check_url(url)
        self._families = families
        self._resource = resource
        self._version = version
        self._clock = clock
        self._every_s = every_s
        self._began_at = clock()
        self._is_lost = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop; what is under way ends within TIMEOUT_S."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT_S + 1.0)

    def push(self, http: httpx.Client) -> None:
        """Send once. Raises MusterError: the database is away; httpx.HTTPError: the collector."""
        said = document(self._families(), self._resource, self._version, self._began_at, self._clock())
        headers = {"Content-Type": "application/json"}
        http.post(self._url, content=msgspec.json.encode(said), headers=headers).raise_for_status()

    def _run(self) -> None:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            while not self._stopping.is_set():
                try:
                    self.push(http)
                except (MusterError, httpx.HTTPError) as error:
                    if not self._is_lost:
                        log.warning("collector_lost", url=self._url, error=str(error))
                    self._is_lost = True
                except Exception:
                    log.exception("otlp_failed")
                else:
                    if self._is_lost:
                        log.info("collector_back", url=self._url)
                    self._is_lost = False
                self._stopping.wait(self._every_s)


def _metric(family: Family, began_at: float, now: float) -> dict[str, Any]:
    is_counter = family.kind is Kind.COUNTER
    points = [
        {
            "attributes": _attributes(sample.labels),
            **({"startTimeUnixNano": _nanoseconds(began_at)} if is_counter else {}),
            "timeUnixNano": _nanoseconds(now),
            "asDouble": sample.value,
        }
        for sample in family.samples
        if math.isfinite(sample.value)  # JSON has no number for the others.
    ]
    plain = family.name.removesuffix("_total").removesuffix("_low").removesuffix("_high")
    unit = next((unit for ending, unit in _UNITS if plain.endswith(ending)), "")
    if is_counter:
        told = {"sum": {"aggregationTemporality": CUMULATIVE, "isMonotonic": True, "dataPoints": points}}
    else:
        told = {"gauge": {"dataPoints": points}}
    return {"name": family.name, "description": family.help, "unit": unit, **told}


def _attributes(labels: Labels) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"stringValue": value}} for name, value in labels]


def _nanoseconds(at: float) -> str:
    """JSON's numbers are too small for them: protobuf's mapping takes 64-bit integers as text."""
    return str(round(at * 1e6) * 1000)
