"""A model of the blocking client: one inference, many, one that goes on by itself, and rows in shared memory.

It sends nothing itself: `blocking` has the connection.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from muster_agent.client.dialogue import Answer, Handle, Inputs, PriorityName, Request, request
from muster_agent.client.schema import Release
from muster_agent.client.shared import SharedModel, Shares


class Asks(Shares, Protocol):
    """The client, as its models know it."""

    def ask_all(self, requests: Iterable[Request]) -> list[int]: ...

    def abandon(self, sequence: int) -> None: ...


class Pending:
    """One inference under way."""

    def __init__(self, client: Asks, sequence: int, timeout_s: float | None) -> None:
        self._client = client
        self._sequence = sequence
        self._timeout_s = timeout_s

    def result(self) -> Answer:
        """Wait for the answer; once.

        Raises:
            ClientError: there is none; its class says what to do.
        """
        return self._client.wait(self._sequence, self._timeout_s)


class Model:
    """A model of the agent. Made by `Client.model`."""

    def __init__(self, client: Asks, handle: Handle) -> None:
        self._client = client
        self._handle = handle

    @property
    def release(self) -> Release:
        """What answered last, or serves: its inputs, outputs, version, digest and engine."""
        return self._handle.release

    def infer(
        self,
        inputs: Inputs,
        *,
        priority: PriorityName = "now",
        timeout_s: float | None = None,
        sequence: tuple[int, bool, bool] | None = None,
    ) -> Answer:
        """Return the answer to one inference.

        Args:
            inputs: Each input by name, or the one that there is. Without its batch axis it is one row, and the outputs
                have no batch axis either.
            priority: Its class; `later` waits until the device is idle.
            timeout_s: When it is of no use any more; None: the client's.
            sequence: Of a stateful model: (id, whether it starts here, whether it ends here).
        Raises:
            InputRefused, SchemaChanged, Overloaded, TooLate, InferenceFailed, ModelUnknown, Unreachable: see `errors`.
        """
        asked = request(self._handle, inputs, priority=priority, timeout_s=timeout_s, sequence=sequence)
        return self._client.wait(self._client.ask(asked), timeout_s)

    def submit(
        self,
        inputs: Inputs,
        *,
        priority: PriorityName = "now",
        timeout_s: float | None = None,
        sequence: tuple[int, bool, bool] | None = None,
    ) -> Pending:
        """Begin an inference, as `infer`, and go on; call `Pending.result` for each, in any order."""
        asked = request(self._handle, inputs, priority=priority, timeout_s=timeout_s, sequence=sequence)
        return Pending(self._client, self._client.ask(asked), timeout_s)

    def infer_many(
        self,
        inputs: Iterable[Inputs],
        *,
        window: int = 32,
        priority: PriorityName = "now",
        timeout_s: float | None = None,
    ) -> Iterator[Answer]:
        """Yield the answers to many inferences, each by itself, in order; at most `window` are under way.

        Raises:
            ClientError: as `infer`, for the first that fails; later ones are given up.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least one must be under way")
        client, handle = self._client, self._handle
        burst = max(1, window // 2)  # The agent works on one half while this side prepares the other.
        source = iter(inputs)
        under_way: deque[int] = deque()
        exhausted = False
        try:
            while True:
                while not exhausted and len(under_way) + burst <= window:
                    batch: list[Request] = []
                    for given in source:
                        batch.append(request(handle, given, priority=priority, timeout_s=timeout_s))
                        if len(batch) == burst:
                            break
                    else:
                        exhausted = True
                    if batch:
                        under_way += client.ask_all(batch)
                if not under_way:
                    return
                yield client.wait(under_way.popleft(), timeout_s)
        finally:
            for sequence in under_way:
                client.abandon(sequence)

    def shared(self, slots: int = 1024) -> SharedModel:
        """Return this model over memory that is shared with the agent: for rows that need no copy.

        Raises:
            RegionInvalid: its tensors have free sizes, or the slots are too many.
        """
        return SharedModel(self._client, self._handle, slots)
