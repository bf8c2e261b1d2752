"""How rows travel to the agent and back, over its Unix socket: through shared memory, or in frames.

    begin(part, tensors) ... begin(other part, ...) ... end(part) -> Outcome

A carrier has as many parts as may be under way; while the agent works on one, this side fills and reads another. All
requests are of class `later`. `http_carriers` has those for TCP.
"""

from collections.abc import Mapping
from typing import NamedTuple, NoReturn, Protocol

import numpy as np

from muster_agent.batch.errors import BatchError, Busy, Lost, RowsRefused
from muster_agent.client import Client, Model, Pending
from muster_agent.client import errors as client
from muster_agent.client.shared import SharedRun
from muster_agent.engines.port import Array

REQUEST_S = 60.0  # The agent's own limit is shorter, and its word is better.
RECONNECT_S = 0.5  # A longer absence is waited for by the run.


class Outcome(NamedTuple):
    """The answer to one part."""

    outputs: dict[str, Array]
    """By name, [rows, ...]; of use until the part is begun again."""
    version: str
    digest: str


class Carrier(Protocol):
    """Every method raises Busy (begin this part again), Lost (make another carrier) or RowsRefused."""

    @property
    def name(self) -> str: ...

    def begin(self, part: int, tensors: Mapping[str, Array], rows: int) -> None:
        """Send the rows of one part; `tensors` [rows, ...] may be reused when this returns."""
        ...

    def end(self, part: int) -> Outcome:
        """Wait for the answer to one part."""
        ...

    def close(self) -> None: ...


class SharedCarrier:
    """Rows in memory that is shared with the agent: only a doorbell travels."""

    name = "shared memory"

    def __init__(self, link: Client, model: Model, rows: int, parts: int) -> None:
        """
        Raises:
            RegionInvalid: the model's tensors have free sizes, or are too many for a region.
        """
        self._link = link
        self._rows = rows
        self._memory = model.shared(slots=rows * parts)
        self._runs: dict[int, tuple[SharedRun, int]] = {}

    def begin(self, part: int, tensors: Mapping[str, Array], rows: int) -> None:
        """See `Carrier`."""
        start = part * self._rows
        for name, slots in self._memory.inputs.items():
            slots[start : start + rows] = tensors[name]
        try:
            self._runs[part] = self._memory.submit(start, rows, priority="later"), rows
        except client.ClientError as error:
            _raise(error)

    def end(self, part: int) -> Outcome:
        """See `Carrier`."""
        run, rows = self._runs.pop(part)
        try:
            answer = run.result()
        except client.ClientError as error:
            _raise(error)
        start = part * self._rows
        outputs = {name: slots[start : start + rows] for name, slots in self._memory.outputs.items()}
        return Outcome(outputs, answer.version, answer.digest)

    def close(self) -> None:
        """See `Carrier`."""
        self._link.close()


class FrameCarrier:
    """Rows in frames: for tensors whose sizes are free, or that have no batch axis."""

    name = "frames"

    def __init__(self, link: Client, model: Model) -> None:
        self._link = link
        self._model = model
        self._batches = [spec.shape[:1] == (-1,) for spec in model.release.outputs]
        self._is_batched = all(spec.shape[:1] == (-1,) for spec in model.release.inputs)
        self._pending: dict[int, Pending] = {}

    def begin(self, part: int, tensors: Mapping[str, Array], rows: int) -> None:
        """See `Carrier`."""
        given = dict(tensors) if self._is_batched else {name: tensor[0] for name, tensor in tensors.items()}
        try:
            self._pending[part] = self._model.submit(given, priority="later")
        except client.ClientError as error:
            _raise(error)

    def end(self, part: int) -> Outcome:
        """See `Carrier`."""
        try:
            answer = self._pending.pop(part).result()
        except client.ClientError as error:
            _raise(error)
        outputs = {
            name: array if batched else array[np.newaxis]
            for (name, array), batched in zip(answer.outputs.items(), self._batches, strict=True)
        }
        return Outcome(outputs, answer.version, answer.digest)

    def close(self) -> None:
        """See `Carrier`."""
        self._link.close()


def connect(path: str, token: str | None, model: str, version: str | None) -> tuple[Client, Model]:
    """Return a connection to the agent at the Unix socket `path`, and the model there.

    Raises:
        Lost: nobody is there, or the model is not (yet).
        ProtocolBroken: what is there speaks no frames.
    """
    try:
        link = Client(path, token, timeout_s=REQUEST_S, reconnect_s=RECONNECT_S, spin_us=0)
    except client.ProtocolBroken:
        raise
    except client.ClientError as error:
        _raise(error)
    try:
        return link, link.model(model, version)
    except client.ClientError as error:
        link.close()
        _raise(error)


def _raise(error: client.ClientError) -> NoReturn:
    raise _ours(error) from error


def _ours(error: client.ClientError) -> BatchError:
    match error:
        case client.Overloaded():
            return Busy(str(error))
        case client.InputRefused() | client.InferenceFailed() | client.TokenRefused():
            return RowsRefused(str(error))
        case _:
            # TooLate, too: what is late may still be written into the memory that it was to go to.
            return Lost(str(error))
