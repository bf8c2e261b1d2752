"""What the running agent says of a model, and the best way to it: shared memory, frames or HTTP."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import msgspec

from muster_agent.batch import carriers, http_carriers
from muster_agent.batch.carriers import Carrier
from muster_agent.batch.errors import JobInvalid, Lost, Moved
from muster_agent.cli.asking import NOT_FOUND, AgentAway, AgentRefused, ask, open_connection
from muster_agent.client import ProtocolBroken, RegionInvalid
from muster_agent.client.schema import Side
from muster_agent.core.plan import INLINE_BATCH_MS
from muster_agent.engines.port import Array
from muster_shared.bundle import TensorSpec

QUEUE_ROWS = 256  # As many may wait at an agent that is configured as it comes.
CALL_US = INLINE_BATCH_MS * 1000  # On the agent's loop: for as long a live request may have to wait.
ROWS_MAX = 1024
LOOKS = 16
WORTH_A_LOOK = 100  # Requests; a shorter job gains nothing by larger ones.
PART_BYTES_MAX = 8 * 1024 * 1024  # A frame has 16 MiB at most, a region of shared memory 256.
CONNECT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as it serves now."""

    model: str
    version: str
    digest: str
    engine: str
    inputs: Side
    outputs: Side
    batch_max: int
    instances: int
    """Calls of its engine at the same time."""
    inline: bool
    """Whether a call holds the agent's loop."""
    engine_us: int
    """Of all calls of its engine so far."""

    @property
    def is_batched(self) -> bool:
        return self.inputs.is_batched

    def rows_per_request(self, wanted: int = 0) -> int:
        """Return how many rows the device gains most by, as it measured itself, or `wanted`; as many as may travel."""
        if not self.is_batched:
            return 1
        row_bytes = max(1, sum(self.inputs.row_bytes) + sum(self.outputs.row_bytes))
        return max(1, min(wanted or self.batch_max, PART_BYTES_MAX // row_bytes))

    def parts(self, rows: int) -> int:
        """Return how many requests of `rows` rows keep it busy while this side reads and writes."""
        return max(2, min(2 * self.instances, QUEUE_ROWS // rows))


def look(endpoint: str, token: str | None, model: str) -> Served:
    """Return what serves as `model`.

    Raises:
        Lost: nobody answers, or it does not serve (yet).
    """
    try:
        status = ask(endpoint, "GET", "/v1/status", token=token)["models"].get(model)
        if status is None:
            raise Lost(f"no release of {model} serves; see `muster-agent status`")
        described = ask(endpoint, "GET", f"/v2/models/{model}/versions/{status['version']}", token=token)
        config = ask(endpoint, "GET", f"/v2/models/{model}/versions/{status['version']}/config", token=token)
        engine = status["engine"]
        return Served(
            model=model,
            version=status["version"],
            digest=status["manifest_sha256"],
            engine=f"{engine['engine']} {engine['version']} {engine['device']} {engine['precision']}",
            inputs=Side(_specs(described["inputs"])),
            outputs=Side(_specs(described["outputs"])),
            batch_max=max(1, int(status["batch_max"])),
            instances=max(1, int(config["instance_group"][0]["count"])),
            inline=bool(status["inline"]),
            engine_us=int(status["counters"]["engine_us"]),
        )
    except AgentAway as error:
        raise Lost(str(error)) from error
    except AgentRefused as error:
        if error.status in (429, 503, NOT_FOUND):  # Between two of the questions it may have changed.
            raise Lost(str(error)) from error
        raise
    except (KeyError, TypeError, ValueError, IndexError, msgspec.ValidationError) as error:
        raise JobInvalid(f"what answers at {endpoint} is no agent of this version: {error!r}") from error


def connector(
    endpoint: str, token: str | None, served: Served, *, rows: int, parts: int, files: bool, any_version: bool
) -> Callable[[], Carrier]:
    """Return what makes a carrier to the agent, anew after each loss.

    Args:
        files: Rows are raw files for the release's pipeline.
        any_version: Whatever serves is asked; else only the release in `served`.
    """
    version = None if any_version else served.version

    def connect() -> Carrier:
        now = look(endpoint, token, served.model)
        if not any_version and now.digest != served.digest:
            raise Moved(
                f"{served.model} {now.version} serves now; this job began with {served.version}. Assign that again"
                " and give the same command, or --restart with the new one, or --restart --any-version for answers of"
                " whatever serves"
            )
        if (now.inputs.specs, now.outputs.specs) != (served.inputs.specs, served.outputs.specs):
            raise Moved(
                f"{served.model} {now.version} takes or gives other tensors than {served.version}; give --restart"
            )
        if endpoint.startswith("unix:") and not files:
            try:
                link, model = carriers.connect(endpoint.removeprefix("unix:"), token, served.model, version)
            except ProtocolBroken:
                pass  # It speaks HTTP alone.
            else:
                try:
                    return carriers.SharedCarrier(link, model, rows, parts)
                except RegionInvalid:
                    return carriers.FrameCarrier(link, model)
        connections = http_carriers.Connections(lambda: open_connection(endpoint, CONNECT_S), token, parts)
        if files:
            return http_carriers.PredictCarrier(connections, served.model, version)
        return http_carriers.HttpCarrier(
            connections, served.model, version, served.outputs.names, is_batched=served.is_batched
        )

    return connect


def grown_rows(
    served: Served,
    rows: int,
    total: int,
    tensors: Mapping[str, Array],
    connect: Callable[[], Carrier],
    again: Callable[[], Served],
) -> int:
    """Return how many rows a request should have: `rows`, doubled while a call stays within CALL_US.

    A request costs the agent 0.1 ms, whatever is in it; small models answer dozens of rows in that time.

    Args:
        tensors: Of `rows` rows, to be asked for LOOKS times.
        again: Looks at the model anew.
    """
    if not served.inline or total < rows * WORTH_A_LOOK:
        return rows
    with closing(connect()) as carrier:
        for _ in range(LOOKS):
            carrier.begin(0, tensors, rows)
            carrier.end(0)
    call_us = max(
        1.0, (again().engine_us - served.engine_us) / LOOKS
    )  # Others' calls are in it: it errs on their side.
    grown = rows
    while grown * 2 <= ROWS_MAX and call_us * (grown * 2 / rows) <= CALL_US:
        grown *= 2
    return min(grown, served.rows_per_request(ROWS_MAX))


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        msgspec.convert(
            {"name": tensor["name"], "datatype": tensor["datatype"], "shape": tuple(tensor["shape"])}, TensorSpec
        )
        for tensor in tensors
    )
