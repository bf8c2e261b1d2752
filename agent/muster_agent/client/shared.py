"""A model over memory that is shared with the agent: rows lie in slots, only a doorbell travels.

    with model.shared(slots=1024) as shared:
        shared.inputs["x"][0:16] = images             # numpy views [slots, ...]
        answer = shared.run(0, 16)                    # or submit(0, 16) ... result(), several at the same time
        shared.outputs["probabilities"][0:16]

The agent reads the inputs where they lie: leave the slots of a run alone until it has ended.
"""

import fcntl
import mmap
import os
from types import TracebackType
from typing import Protocol

from muster_agent.client.dialogue import (
    PRIORITIES,
    Answer,
    Handle,
    PriorityName,
    Request,
    SharedSlots,
    milliseconds,
    moved,
)
from muster_agent.client.frames import IN_SHARED
from muster_agent.client.layout import Layout
from muster_agent.engines.port import Array


class Shares(Protocol):
    """The client, as this module knows it."""

    def ask(self, asked: Request) -> int: ...

    def wait(self, sequence: int, timeout_s: float | None) -> Answer: ...

    def share(self, shared: "SharedModel") -> None: ...

    def unshare(self, shared: "SharedModel") -> None: ...


class SharedRun:
    """One run under way."""

    def __init__(self, client: Shares, sequence: int, timeout_s: float | None) -> None:
        self._client = client
        self._sequence = sequence
        self._timeout_s = timeout_s

    def result(self) -> Answer:
        """Wait until the outputs are in their slots; once. The answer says of what release, but holds no outputs.

        Raises:
            ClientError: they are not; see `errors`.
        """
        return self._client.wait(self._sequence, self._timeout_s)


class SharedModel:
    """Made by `Model.shared`."""

    def __init__(self, client: Shares, handle: Handle, slots: int) -> None:
        layout = Layout(handle.inputs, handle.outputs, slots)
        self.slots = slots
        self.handle = handle
        self.region = 0
        self._client = client
        self._inputs = handle.inputs
        self._outputs = handle.outputs
        self.descriptor = os.memfd_create("muster-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.descriptor, 0, layout.size)  # Ours to pay for, and now: not the agent's, later.
            fcntl.fcntl(
                self.descriptor,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            memory = memoryview(mmap.mmap(self.descriptor, layout.size))
            self.inputs: dict[str, Array] = dict(zip(handle.inputs.names, layout.inputs(memory), strict=True))
            self.outputs: dict[str, Array] = dict(zip(handle.outputs.names, layout.outputs(memory), strict=True))
            client.share(self)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> "SharedModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back. Harmless twice; the arrays stay readable as long as they are held."""
        if self.descriptor >= 0:
            self._client.unshare(self)
        self.release_memory()

    def release_memory(self) -> None:
        """Forget the memory on this side alone; the connection is gone."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.inputs, self.outputs = {}, {}

    def run(self, start: int, count: int, *, priority: PriorityName = "now", timeout_s: float | None = None) -> Answer:
        """Infer the rows in `count` slots from `start`, as one request, and wait until the outputs are in their slots.

        Raises:
            ValueError: they are not within the slots.
            ClientError: as `Model.infer`.
        """
        return self.submit(start, count, priority=priority, timeout_s=timeout_s).result()

    def submit(
        self, start: int, count: int, *, priority: PriorityName = "now", timeout_s: float | None = None
    ) -> SharedRun:
        """Begin a run, as `run`, and go on: fill some slots while the agent works on others."""
        if start < 0 or count < 1 or start + count > self.slots:
            raise ValueError(f"{count} slots from {start} are not within the {self.slots} of this region")
        if self.handle.inputs is not self._inputs or self.handle.outputs is not self._outputs:
            raise moved(self.handle)
        asked = Request(
            self.handle,
            [],
            PRIORITIES[priority] | IN_SHARED,
            milliseconds(timeout_s),
            False,
            SharedSlots(self, start, count),
        )
        return SharedRun(self._client, self._client.ask(asked), timeout_s)
