"""What local callers ask of the conductor: load, unload, try the release that does not serve.

    serving loop ── ask ──▶ conductor's thread ── lab ──▶ worker ──▶ serving table
                 ◀───────── done(error or None) ─────────┘

Nothing can be loaded that is not a signed release on this device. It decides nothing: the lab and the table do.
"""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import structlog

from muster_agent.conductor import Conductor
from muster_agent.core.split import Mode
from muster_agent.inbox import ConductorThread
from muster_agent.lab import EngineLab
from muster_agent.serving.service import AgentBusy, ModelUnloaded, NoStandby
from muster_agent.serving.table import ModelUnknown, ServingTable
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

log = structlog.get_logger(__name__)

Done = Callable[[MusterError | None], None]


class Desk:
    """`serving.app.Repository` and `serving.app.Trials`. Called on the serving loop."""

    def __init__(
        self, thread: ConductorThread, conductor: Callable[[], Conductor], lab: EngineLab, table: ServingTable
    ) -> None:
        """
        Args:
            conductor: Returns it, once there is one.
        """
        self._thread = thread
        self._conductor = conductor
        self._lab = lab
        self._table = table
        self._loop = asyncio.get_running_loop()

    # -- serving.app.Repository -------------------------------------------------------------------------------------

    def index(self) -> list[dict[str, str]]:
        """Return every release on this device, in the words of the repository extension."""
        rows: list[dict[str, str]] = []
        serving = self._table.places()
        unloaded = self._lab.unloaded()
        for name, model in sorted(self._conductor().state.models.items()):
            for slot in (model.slots.active, model.slots.standby):
                if slot is None:
                    continue
                serves = name in serving and serving[name].version == slot.version
                reason = "" if serves else "unloaded" if slot is model.slots.active and name in unloaded else "standby"
                rows.append(
                    {
                        "name": name,
                        "version": slot.version,
                        "state": "READY" if serves else "UNAVAILABLE",
                        "reason": reason,
                    }
                )
        return rows

    def load(self, model: str, done: Done) -> None:
        """See `serving.app.Repository`."""
        self._change(model, self._lab.reload, done)

    def unload(self, model: str, done: Done) -> None:
        """See `serving.app.Repository`."""
        self._change(model, self._lab.unload, done)

    # -- serving.app.Trials ------------------------------------------------------------------------------------------

    def begin(self, model: str, mode: Mode, share: float, done: Done) -> None:
        """Load the standby release of `model` and put it beside the one that serves."""

        def act() -> None:
            found = self._conductor().standby(model)
            if found is None:
                self._tell(done, NoStandby(model))
            else:
                self._lab.begin_trial(*found, mode, share, lambda error: self._tell(done, error))

        self._ask(act, done)

    def end(self, model: str, done: Done) -> None:
        """Close the candidate of `model`."""
        self._table.end_trial(model)
        done(None)

    # ----------------------------------------------------------------------------------------------------------------

    def absent(self, model: str) -> None:
        """Have a model loaded again that was unloaded to make room, as somebody asks for it. Raises ModelUnloaded."""
        name = ModelName(model)
        if name not in self._lab.unloaded():
            return
        self._ask(lambda: self._lab.reload(name), lambda error: None)
        raise ModelUnloaded(model)

    def _change(self, model: str, change: Callable[[ModelName], bool], done: Done) -> None:
        def act() -> None:
            known = change(ModelName(model))
            self._tell(done, None if known else ModelUnknown(model, None))

        self._ask(act, done)

    def _ask(self, act: Callable[[], object], done: Done) -> None:
        try:
            asked = self._thread.ask(act)
        except queue.Full:
            done(AgentBusy())
        else:
            asked.add_done_callback(partial(self._asked, done))

    def _asked(self, done: Done, asked: "Future[object]") -> None:
        if asked.exception() is not None:  # A bug of ours; whoever asked must not wait for ever.
            log.error("request_failed", exc_info=asked.exception())
            self._tell(done, AgentBusy())

    def _tell(self, done: Done, error: MusterError | None) -> None:
        self._loop.call_soon_threadsafe(done, error)
