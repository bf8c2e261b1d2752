"""What the handles of one frames connection stand for, and which releases its client has been told of.

    attach ──> handle ──meet(same tensors, another release)──> RELEASE, the same handle
                  └─────meet(other tensors)──> RELEASE with a new handle; the old one refuses from then on

It reads and runs nothing; `say` sends what the client is to know, before any answer that names it.
"""

from collections.abc import Callable

import msgspec

from muster_agent.client.frames import Attach, Kind, frame
from muster_agent.client.schema import Release, Side
from muster_agent.serving.table import Place, Served
from muster_shared.errors import MusterError

HANDLES_MAX = 256
RELEASES_MAX = 64  # Remembered a connection, so that a model between two releases is not announced again and again.
RUN_ROWS_MAX = 64  # A longer run holds the loop, and gains nothing any more.
_HANDLE_MAX = 0xFFFF

_encode = msgspec.json.Encoder().encode


class HandleUnknown(MusterError):
    """Nothing is attached under this handle."""

    def __init__(self, handle: int) -> None:
        super().__init__(f"handle {handle} is not attached; attach the model first")
        self.handle = handle


class HandlesFull(MusterError):
    """One connection holds no more."""

    retry_after_s = 0.0

    def __init__(self) -> None:
        super().__init__(f"{HANDLES_MAX} models are attached on this connection; detach some")


class SchemaMoved(MusterError):
    """The handle stands for tensors that the release which serves now does not have."""

    def __init__(self, model: str, version: str) -> None:
        super().__init__(f"{model} {version} takes or gives other tensors than the release before; ask anew")


class Attachment:
    """What one handle means: a model, with the tensors that the client was told."""

    def __init__(self, handle: int, model: str, version: str | None, place: Place) -> None:
        self.handle = handle
        self.model = model
        self.version = version
        self.inputs = Side(place.inputs)
        self.outputs = Side(place.outputs)
        self.shapes = self.inputs.row_shapes
        self.before = 0
        """The handle that stood for the model while it had other tensors."""
        self.has_moved = False
        self.served: Served | None = None
        self.index = 0
        """Of the release in `served`, on this connection."""
        self.run_rows = 1
        """Frames of one run that may share a call."""

    def take(self, place: Place, index: int) -> None:
        """Mean the release in `place` from now on."""
        self.served = place.served
        self.index = index
        # Answers from memory, and sequences, are of one request each.
        together = place.batches and place.plain and self.inputs.is_fixed
        self.run_rows = min(RUN_ROWS_MAX, place.served.plan.batch_max) if together else 1


class Handles:
    """The handles of one connection."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        """
        Args:
            say: Sends a frame to the client.
        """
        self._say = say
        self._attachments: dict[int, Attachment] = {}
        self._last = 0
        self._releases: dict[tuple[str, str, str], int] = {}
        self._told = 0
        self.get = self._attachments.get
        """Return the attachment of a handle, or None."""

    def known(self, handle: int) -> Attachment:
        """Return the attachment of `handle`. Raises HandleUnknown."""
        attachment = self._attachments.get(handle)
        if attachment is None:
            raise HandleUnknown(handle)
        return attachment

    def attach(self, asked: Attach, place: Place, sequence: int) -> None:
        """Give a handle to the model in `place`, and answer frame `sequence` with it.

        Raises:
            HandlesFull: there are too many.
        """
        if len(self._attachments) >= HANDLES_MAX:
            raise HandlesFull
        attachment = self._made(asked.model, asked.version, place)
        self._announce(attachment, place, Kind.ATTACHED, attachment.handle, sequence)

    def detach(self, handle: int) -> None:
        """Forget `handle`; nothing happens when it is not attached."""
        self._attachments.pop(handle, None)

    def meet(self, attachment: Attachment, place: Place) -> None:
        """Let the handle mean the release in `place`, which it did not before, and tell the client if it must know.

        Raises:
            SchemaMoved: it has other tensors; the client has been told of the handle for those.
        """
        if place.inputs != attachment.inputs.specs or place.outputs != attachment.outputs.specs:
            self._move(attachment, place)
            raise SchemaMoved(attachment.model, place.version)
        index = self._releases.get(_key(attachment, place))
        if index is None:
            self._announce(attachment, place, Kind.RELEASE, attachment.handle, 0)
        else:
            attachment.take(place, index)

    def _move(self, attachment: Attachment, place: Place) -> None:
        """Make another handle for the tensors of now; the old one stays for what is under way."""
        if attachment.has_moved:
            return
        attachment.has_moved = True
        self._attachments.pop(attachment.before, None)
        successor = self._made(attachment.model, attachment.version, place)
        successor.before = attachment.handle
        self._announce(successor, place, Kind.RELEASE, attachment.handle, successor.handle)

    def _made(self, model: str, version: str | None, place: Place) -> Attachment:
        self._last = self._last % _HANDLE_MAX + 1
        while self._last in self._attachments:
            self._last = self._last % _HANDLE_MAX + 1
        attachment = self._attachments[self._last] = Attachment(self._last, model, version, place)
        return attachment

    def _announce(self, attachment: Attachment, place: Place, kind: Kind, handle: int, sequence: int) -> None:
        key = _key(attachment, place)
        index = self._releases.get(key)
        if index is None:
            if len(self._releases) >= RELEASES_MAX:
                del self._releases[next(iter(self._releases))]
            self._told += 1
            index = self._releases[key] = self._told
        attachment.take(place, index)
        raw = _encode(describe(attachment, place, index))
        self._say(frame(kind, raw, handle=handle, extra=index, sequence=sequence))


def describe(attachment: Attachment, place: Place, index: int) -> Release:
    """Return what the client is told of the release in `place`."""
    served = place.served
    achieved = served.session.achieved
    return Release(
        index=index,
        model=attachment.model,
        version=place.version,
        digest=served.manifest_sha256,
        engine=f"{achieved.engine} {achieved.version} {achieved.device} {achieved.precision}",
        inputs=place.inputs,
        outputs=place.outputs,
    )


def _key(attachment: Attachment, place: Place) -> tuple[str, str, str]:
    served = place.served
    return attachment.model, served.manifest_sha256, f"{served.session.achieved.engine} {served.variant}"
