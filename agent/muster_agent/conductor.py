"""The conductor: turns what arrives into events of the core, saves what it decides, and carries out the effects.

    wire ─ received ─▶ parse at the edge ─▶ core.update.advance ─▶ journal.commit (state + reports, one transaction)
    lab  ─ self_test_done ─▶      ▲                                     │
    time ─ tick ──────────────────┘         store · wire · lab ◀────────┘ effects

Everything outside is a port, so the simulator runs this very class under virtual time and faults. It is
single-threaded: whoever owns it calls it from one thread. A method never raises for what came from outside: it
counts, reports, drops.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import structlog

from muster_agent.activating import Activating
from muster_agent.core import events, transfer, update
from muster_agent.core.state import DeviceState, ModelState, Phase, Stage
from muster_agent.core.transfer import Arrival, Transfer
from muster_agent.core.trial import TrialReading
from muster_agent.core.trust import TrustView
from muster_agent.errors import JournalFailed, MetadataIncomplete, StoreError
from muster_agent.ports import Consent, Host, Journal, Lab, Lately, Store, Trials, Trust, Wire
from muster_shared.bundle import BundleFile, Manifest, Variant, digest, parse_manifest
from muster_shared.errors import (
    AssignmentForged,
    BundleError,
    FileTampered,
    MetadataExpired,
    MetadataReplayed,
    TrustError,
    WireError,
)
from muster_shared.ids import DeviceId, EventId, FleetId, ModelName, Sha256
from muster_shared.messages import (
    Ack,
    AssignmentRefused,
    ControllerSession,
    Event,
    EventBody,
    Hardware,
    Presence,
    Refusal,
    ReleaseRef,
    TrustFiles,
    Twin,
    TwinModel,
    Want,
    decode,
    encode,
    pack_bits,
)
from muster_shared.topics import Channel, ChunkTopic, ControllerTopic, DeviceTopic, Topic, TrustTopic, WantTopic
from muster_shared.variants import eligible, files_of

log = structlog.get_logger()

GRACE_S = 5.0  # Retained topics come in any order: a release may be assigned just before its metadata arrives.
RESEND_S = 10.0
OUTBOX_IN_FLIGHT = 64
TWIN_GAP_S = 0.25
REMEMBERED_REFUSALS = 256


@dataclass(frozen=True)
class Identity:
    """Who this device is, fixed for the life of the process."""

    fleet: FleetId
    device: DeviceId
    boot: str
    agent_version: str
    hardware: Hardware
    labels: dict[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    timezone: str | None = None
    """Of its maintenance windows, in the words of `Twin.timezone`."""
    twin_every_s: float = 60.0


@dataclass
class Fetch:
    """The files of one release on their way, one at a time: memory stays constant and order is the publisher's."""

    release: ReleaseRef
    phase: Phase
    files: tuple[BundleFile, ...]
    current: Transfer | None = None
    bytes_fetched: int = 0

    @property
    def length(self) -> int:
        return sum(file.length for file in self.files)


@dataclass
class Counters:
    """What the edge refused; each is logged once a boot and counted for ever."""

    malformed: int = 0
    corrupt_chunks: int = 0
    refused: int = 0


class Conductor:
    """One device. Call `start` once, then feed it; ask `wake_at` when to call `tick`."""

    def __init__(
        self,
        identity: Identity,
        *,
        journal: Journal,
        store: Store,
        trust: Trust,
        wire: Wire,
        lab: Lab,
        host: Host,
        clock: Callable[[], float],
        random: Random,
        consent: Consent | None = None,
        trials: Trials | None = None,
        lately: Lately | None = None,
        called: Callable[[bytes], None] | None = None,
    ) -> None:
        """
        Args:
            consent: None: it is never put off, and its local time is UTC.
            trials: None: nothing can be tried beside what serves.
            lately: None: nobody knows how what serves did before.
            called: Takes calls as they come, unverified, and does not wait; None: nobody answers them.
        """
        self.identity = identity
        self.counters = Counters()
        self._journal = journal
        self._store = store
        self._trust = trust
        self._wire = wire
        self._lab = lab
        self._host = host
        self._clock = clock
        self._random = random
        self._called = called
        self._activating = Activating(self._advance, clock, consent, trials, lately)
        self._state = DeviceState(identity.fleet, identity.device)
        self._fetches: dict[Sha256, Fetch] = {}
        self._wakes: set[float] = set()
        self._manifests: dict[Sha256, Manifest] = {}
        self._ticked_at = 0.0
        self._pending: bytes | None = None
        self._pending_since = 0.0
        self._pending_graced = False
        self._suspect_since: float | None = None
        self._suspect_told = False
        self._refused: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._sent: dict[EventId, float] = {}
        self._connected = False
        self._twin_sequence = 0
        self._twin_dirty = True
        self._twin_at = 0.0
        self._session: str | None = None
        self._events: deque[events.Event] = deque()
        self._effects: deque[events.Effect] = deque()
        self._busy = False

    @property
    def state(self) -> DeviceState:
        return self._state

    # -- what happens to a device ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up where the journal left off: verify both slots, serve, resume what was under way."""
        saved = self._journal.load()
        if saved is None:
            return  # Nothing to take up; and what the store holds may outlive a journal that was lost.
        if (saved.fleet, saved.device) != (self.identity.fleet, self.identity.device):
            # The device was given another name: its models go on serving, the counter of the old name means nothing.
            log.warning("device_renamed", before=saved.device, after=self.identity.device)
            saved = replace(saved, fleet=self.identity.fleet, device=self.identity.device, counter=0, assignment=None)
        self._state = saved
        broken = frozenset(
            slot.bundle_sha256
            for model in self._state.models.values()
            for slot in (model.slots.active, model.slots.standby)
            if slot is not None and not self._runnable(slot)
        )
        self._advance(events.PowerCameBack(broken))

    def connected(self) -> None:
        """The broker is there: say so, tell the twin, open the outbox, ask again for what is missing."""
        self._connected = True
        self._sent.clear()
        presence = Presence(device=self.identity.device, boot=self.identity.boot, online=True, sent_at=self._clock())
        self._wire.publish(self._own(Channel.PRESENCE), encode(presence), qos=1, retain=True)
        self._publish_twin()
        self._flush()
        for sha256, fetch in sorted(self._fetches.items()):
            if fetch.current is not None:
                self._wire.listen(fetch.current.file.sha256)
                self._ask(sha256, fetch, afresh=True)

    def disconnected(self) -> None:
        self._connected = False

    def received(self, topic: Topic, payload: bytes) -> None:
        """One message, as it came."""
        try:
            match topic:
                case DeviceTopic(device, Channel.ASSIGNMENT) if device == self.identity.device:
                    if payload:
                        self._pending, self._pending_since, self._pending_graced = payload, self._clock(), False
                        self._reconsider()
                case DeviceTopic(device, Channel.ACK) if device == self.identity.device:
                    self._acknowledged(decode(payload, Ack))
                case DeviceTopic(device, Channel.CALL) if device == self.identity.device:
                    if self._called is not None:
                        self._called(payload)
                case ControllerTopic():
                    session = decode(payload, ControllerSession).session
                    if session != self._session:
                        self._session = session
                        self.connected()
                case TrustTopic(role):
                    files = decode(payload, TrustFiles)
                    if files.role != role:
                        raise WireError(f"metadata of {files.role!r} on the topic of {role!r}")
                    if self._trust.offer(files):
                        self._reconsider()
                case ChunkTopic(sha256, index):
                    self._chunk(sha256, index, payload)
                case _:
                    raise WireError("nothing that a device listens to")
        except WireError as error:
            self._malformed(topic, error)

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None:
        self._advance(events.SelfTestDone(bundle, refusal, detail))

    def serve_failed(self, bundle: Sha256, detail: str) -> None:
        self._advance(events.ServeFailed(bundle, detail))

    def consent_given(self, bundle: Sha256, stage: Stage) -> None:
        self._advance(events.ConsentGiven(bundle, stage))

    def consent_deferred(self, bundle: Sha256, stage: Stage, reason: str, retry_after_s: float) -> None:
        self._advance(events.ConsentDeferred(bundle, stage, reason, retry_after_s))

    def trial_measured(self, bundle: Sha256, reading: TrialReading) -> None:
        self._advance(events.TrialMeasured(bundle, reading))

    def trial_refused(self, bundle: Sha256, detail: str) -> None:
        self._advance(events.TrialRefused(bundle, detail))

    def tick(self) -> None:
        """Do what is due. Harmless at any moment."""
        now = self._clock()
        self._drain()  # What the journal refused before.
        set_back = now < self._ticked_at  # The moments to wake at may be far away now; the core mends them.
        self._ticked_at = now
        if set_back or any(at <= now for at in self._wakes):
            self._wakes = {at for at in self._wakes if at > now}
            self._advance(events.TimeCame())
        if set_back:
            self._pending_since = min(self._pending_since, now)
            if self._suspect_since is not None:
                self._suspect_since = min(self._suspect_since, now)
        if self._is_due(now):
            self._pending_graced = now >= self._pending_since + GRACE_S
            self._reconsider()
        for sha256, fetch in sorted(self._fetches.items()):
            if fetch.current is not None and (set_back or now >= fetch.current.quiet_until):
                self._ask(sha256, fetch, afresh=set_back)
        if self._connected:
            self._flush()
            due = self._twin_at + (TWIN_GAP_S if self._twin_dirty else self.identity.twin_every_s)
            if now >= due or now < self._twin_at:
                self._publish_twin()

    def wake_at(self) -> float | None:
        """Return when `tick` is next worth calling, in the clock's seconds."""
        moments = list(self._wakes)
        if self._pending is not None and not self._pending_graced:
            moments.append(self._pending_since + GRACE_S)
        if self._suspect_since is not None and not self._suspect_told:
            moments.append(self._suspect_since + GRACE_S)
        moments += [fetch.current.quiet_until for fetch in self._fetches.values() if fetch.current is not None]
        if self._connected:
            moments.append(self._twin_at + (TWIN_GAP_S if self._twin_dirty else self.identity.twin_every_s))
            moments += [at + RESEND_S for at in self._sent.values()]
        return min(moments, default=None)

    # -- trust and assignments ---------------------------------------------------------------------------------------

    def _reconsider(self) -> None:
        """Judge the waiting assignment by the newest metadata that verifies."""
        view: TrustView | None
        expired: MetadataExpired | None = None
        try:
            view = self._trust.refresh()
            self._suspect_since = None
        except MetadataIncomplete:
            return
        except MetadataExpired as error:
            view, expired = self._trust.view(), error
        except MetadataReplayed as error:
            view = self._suspect(Refusal.REPLAYED, error)
        except TrustError as error:
            view = self._suspect(Refusal.METADATA_UNTRUSTED, error)
        except StoreError as error:
            log.warning("metadata_not_kept", error=str(error))
            return  # What cannot be kept is not used; the assignment waits.
        raw = self._pending
        if raw is None:
            return
        if expired is not None:
            self._refuse_once(Refusal.METADATA_EXPIRED, str(expired), raw)
            return
        if view is None:
            return
        try:
            assignment = self._trust.open_assignment(raw)
        except AssignmentForged as error:
            if self._clock() >= self._pending_since + GRACE_S:  # A rotated key may be one topic behind.
                self._pending = None
                self._refuse_once(Refusal.FORGED, str(error), raw)
            return
        except WireError as error:
            self._pending = None
            self._malformed(self._own(Channel.ASSIGNMENT), error)
            return
        except MetadataIncomplete:  # It could not be checked now; it waits, and is looked at again.
            return
        event = events.AssignmentArrived(assignment, digest(raw), view.targets, tuple(sorted(view.keys.keys)))
        state, effects = update.advance(self._state, event, self._clock())
        refused = [
            effect.body
            for effect in effects
            if isinstance(effect, events.Report) and isinstance(effect.body, AssignmentRefused)
        ]
        if not refused:
            self._commit(state, effects)
            self._pending = None
        elif refused[0].refusal is not Refusal.NOT_A_TARGET:
            self._pending = None
            self._refuse_once(refused[0].refusal, refused[0].detail, raw, refused[0].counter)
        elif self._clock() >= self._pending_since + GRACE_S:
            # It stays pending: the metadata may come yet, and then it is obeyed.
            self._refuse_once(refused[0].refusal, refused[0].detail, raw, refused[0].counter)

    def _is_due(self, now: float) -> bool:
        """Return whether what may have been one topic behind has had its time."""
        if self._suspect_since is not None and not self._suspect_told and now >= self._suspect_since + GRACE_S:
            return True
        return self._pending is not None and now >= self._pending_since + GRACE_S

    def _suspect(self, refusal: Refusal, error: TrustError) -> TrustView | None:
        """Go by what was verified before, and report only what does not heal: a new root may be one topic behind."""
        now = self._clock()
        if self._suspect_since is None:
            self._suspect_since, self._suspect_told = now, False
        elif now >= self._suspect_since + GRACE_S:
            self._suspect_told = True
            self._refuse_once(refusal, str(error), None)
        return self._trust.view()

    def _refuse_once(self, refusal: Refusal, detail: str, raw: bytes | None, counter: int | None = None) -> None:
        """Report a refusal, but not again for the same bytes: retained topics repeat themselves."""
        key = (refusal.value, digest(raw) if raw is not None else detail)
        if key in self._refused:
            return
        self._refused[key] = None
        while len(self._refused) > REMEMBERED_REFUSALS:
            self._refused.popitem(last=False)
        self.counters.refused += 1
        log.warning("assignment_refused", refusal=refusal.value, counter=counter, detail=detail)
        self._commit(self._state, (events.Report(AssignmentRefused(refusal=refusal, counter=counter, detail=detail)),))

    # -- the core and its effects ------------------------------------------------------------------------------------

    def _advance(self, event: events.Event) -> None:
        """Let the core decide about `event`; one that arises while effects are carried out waits for its turn."""
        self._events.append(event)
        self._drain()

    def _commit(self, state: DeviceState, effects: tuple[events.Effect, ...]) -> None:
        """Save first, act afterwards: what is done twice after power loss is harmless, what is forgotten is not."""
        reports = [self._event(effect.body) for effect in effects if isinstance(effect, events.Report)]
        if reports or state != self._state:
            self._journal.commit(state, reports)
            self._state = state
            self._twin_dirty = True
        self._effects.extend(effects)
        self._drain()
        if reports and self._connected:
            self._flush()

    def _drain(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._effects or self._events:
                if self._effects:
                    self._carry_out(self._effects.popleft())
                else:
                    event = self._events.popleft()
                    try:
                        self._commit(*update.advance(self._state, event, self._clock()))
                    except JournalFailed:  # For a while, perhaps: the next tick tries again.
                        self._events.appendleft(event)
                        raise
        finally:
            self._busy = False

    def _carry_out(self, effect: events.Effect) -> None:
        match effect:
            case events.FetchManifest(release):
                self._fetch_manifest(release)
            case events.FetchFiles(release):
                self._fetch_files(release)
            case events.StopFetching(bundle):
                self._stop_fetching(bundle)
            case events.SelfTest(release):
                self._with_variants(release, self._lab.self_test)
            case events.Serve(release):
                self._with_variants(release, self._lab.serve)
            case events.Retire(model):
                self._lab.retire(model)
            case events.OpenWindow(release):
                self._lab.open_window(release)
            case events.Measure(release):
                self._measure(release)
            case events.WakeAt(at):
                self._wakes.add(at)
            case events.Collect(keep, resting):
                self._collect(keep, resting)
            case events.BeginTrial(release, trial):
                self._activating.begin_trial(release, trial, self._runnable_parts(release))
            case (
                events.ReadClock()
                | events.AskConsent()
                | events.ReadTrial()
                | events.EndTrial()
                | events.MeasureBefore()
            ):
                self._activating.carry_out(effect)
            case events.Report():
                pass  # It is in the journal.

    def _event(self, body: EventBody) -> Event:
        name = EventId(f"{self._random.getrandbits(96):024x}")
        return Event(id=name, device=self.identity.device, at=self._clock(), body=body)

    def _measure(self, release: ReleaseRef) -> None:
        manifest = self._manifest(release)
        if manifest is None:
            self.serve_failed(release.bundle_sha256, "its manifest is not readable any more")
            return
        window = self._lab.measure(release)
        self._advance(events.WindowMeasured(release.bundle_sha256, window, manifest.slo))

    def _with_variants(
        self, release: ReleaseRef, act: Callable[[ReleaseRef, Manifest, tuple[Variant, ...]], None]
    ) -> None:
        parts = self._runnable_parts(release)
        if parts is None:
            detail = "its manifest is not readable any more, or no variant fits this device"
            self.self_test_done(release.bundle_sha256, Refusal.MANIFEST_INVALID, detail)
            self.serve_failed(release.bundle_sha256, detail)
            return
        act(release, *parts)

    def _runnable_parts(self, release: ReleaseRef) -> tuple[Manifest, tuple[Variant, ...]] | None:
        manifest = self._manifest(release)
        variants = () if manifest is None else eligible(manifest, self.identity.hardware)
        return (manifest, variants) if manifest is not None and variants else None

    def standby(self, model: str) -> tuple[ReleaseRef, Manifest, tuple[Variant, ...]] | None:
        """Return the release of `model` that is on this device and does not serve; None when there is none to run."""
        known = self._state.models.get(ModelName(model))
        release = None if known is None else known.slots.standby
        parts = None if release is None else self._runnable_parts(release)
        return None if release is None or parts is None else (release, *parts)

    def _manifest(self, release: ReleaseRef) -> Manifest | None:
        """Return the manifest of `release`: read once, so that what serves does not hang on a disk that falters."""
        known = self._manifests.get(release.bundle_sha256)
        if known is not None:
            return known
        try:
            manifest = parse_manifest(self._store.read(release.bundle_sha256))
        except (StoreError, BundleError):
            return None
        self._manifests[release.bundle_sha256] = manifest
        return manifest

    def _runnable(self, release: ReleaseRef) -> bool:
        manifest = self._manifest(release)
        if manifest is None:
            return False
        variants = eligible(manifest, self.identity.hardware)
        whole = {file.path for file in files_of(manifest, variants) if self._store.verify(file)}
        # One variant that runs is enough: what the others were is known, or is measured again.
        return any(all(file.path in whole for file in manifest.files_for(variant)) for variant in variants)

    def _collect(self, keep: frozenset[Sha256], resting: frozenset[Sha256]) -> None:
        files: set[Sha256] = set(keep)
        for release in self._known_releases():
            if release.bundle_sha256 in keep and self._store.has(release.bundle_sha256):
                manifest = self._manifest(release)
                if manifest is None:
                    return  # Nobody can tell which files it needs: better too many than one too few.
                variants = eligible(manifest, self.identity.hardware)
                files.update(file.sha256 for file in files_of(manifest, variants))
        self._manifests = {bundle: manifest for bundle, manifest in self._manifests.items() if bundle in keep}
        self._lab.drop(keep - resting)
        self._store.collect(frozenset(files))

    def _known_releases(self) -> list[ReleaseRef]:
        return [
            release
            for model in self._state.models.values()
            for release in (
                model.slots.active,
                model.slots.standby,
                model.update.release if model.update else None,
                model.failed,
            )
            if release is not None
        ]

    # -- fetching ----------------------------------------------------------------------------------------------------

    def _fetch_manifest(self, release: ReleaseRef) -> None:
        file = BundleFile(path="bundle.json", sha256=release.bundle_sha256, length=release.bundle_length)
        self._begin(Fetch(release, Phase.MANIFEST, (file,)))

    def _fetch_files(self, release: ReleaseRef) -> None:
        manifest = self._manifest(release)
        variants = () if manifest is None else eligible(manifest, self.identity.hardware)
        if manifest is None or not variants:
            self._give_up(release, Refusal.MANIFEST_INVALID, "its manifest is not readable any more")
            return
        self._begin(Fetch(release, Phase.FILES, files_of(manifest, variants)))

    def _begin(self, fetch: Fetch) -> None:
        self._stop_fetching(fetch.release.bundle_sha256)
        self._fetches[fetch.release.bundle_sha256] = fetch
        self._next_file(fetch)

    def _next_file(self, fetch: Fetch) -> None:
        """Start the next file that is not here, or say that all are."""
        bundle = fetch.release.bundle_sha256
        for file in fetch.files:
            if self._store.has(file.sha256) and self._store.verify(file):
                continue  # Another release brought it; if it rotted since, it is fetched again.
            fetch.current, want = transfer.begin(file, self._store.resume(file), self._clock())
            self._wire.listen(file.sha256)
            if want is not None:
                self._publish_want(fetch.current, want)
                return
            if not self._finish_file(fetch, fetch.current):
                return
        del self._fetches[bundle]
        if fetch.phase is Phase.FILES:
            self._advance(events.FilesReady(bundle, fetch.bytes_fetched))
            return
        try:
            manifest = parse_manifest(self._store.read(bundle))
        except (StoreError, BundleError) as error:
            self._advance(events.FetchFailed(bundle, Refusal.MANIFEST_INVALID, str(error)))
            return
        self._advance(events.ManifestReady(bundle, manifest, self.identity.hardware))

    def _chunk(self, sha256: Sha256, index: int, chunk: bytes) -> None:
        for fetch in [fetch for _, fetch in sorted(self._fetches.items())]:
            current = fetch.current
            if current is None or current.file.sha256 != sha256:
                continue
            advanced, arrival = transfer.arrive(current, index, chunk, self._clock())
            fetch.current = advanced
            match arrival:
                case Arrival.WRITE:
                    try:
                        self._store.write_chunk(advanced.file, index, chunk)
                    except StoreError as error:
                        self._store.abandon(sha256)  # The journal needs some room to say so.
                        self._give_up(fetch.release, Refusal.DISK_FULL, str(error))
                        continue
                    fetch.bytes_fetched += len(chunk)
                    self._twin_dirty = True
                    if advanced.complete:
                        if self._finish_file(fetch, advanced):
                            self._next_file(fetch)
                    elif not advanced.window:
                        self._ask(fetch.release.bundle_sha256, fetch)
                case Arrival.CORRUPT:
                    self.counters.corrupt_chunks += 1
                case Arrival.LYING:
                    detail = f"{advanced.bad_chunks} chunks of {advanced.file.path} did not hash to what is signed"
                    self._give_up(fetch.release, Refusal.TAMPERED, detail)
                case Arrival.KNOWN:
                    pass

    def _finish_file(self, fetch: Fetch, done: Transfer) -> bool:
        self._wire.unlisten(done.file.sha256)
        fetch.current = None
        try:
            self._store.finish(done.file)
        except FileTampered as error:
            self._give_up(fetch.release, Refusal.TAMPERED, str(error))
            return False
        except StoreError as error:
            self._store.abandon(done.file.sha256)
            self._give_up(fetch.release, Refusal.DISK_FULL, str(error))
            return False
        return True

    def _ask(self, bundle: Sha256, fetch: Fetch, *, afresh: bool = False) -> None:
        if fetch.current is None:
            return
        current = replace(fetch.current, window=0) if afresh else fetch.current
        fetch.current, want = transfer.ask(current, self._clock())
        if want is not None:
            self._publish_want(fetch.current, want)

    def _publish_want(self, current: Transfer, want: transfer.Want) -> None:
        if not self._connected:
            return
        message = Want(
            device=self.identity.device,
            length=current.file.length,
            chunk_bytes=current.file.chunk_bytes,
            missing=pack_bits(want.missing, current.count),
        )
        self._wire.publish(WantTopic(want.sha256), encode(message), qos=1)

    def _give_up(self, release: ReleaseRef, refusal: Refusal, detail: str) -> None:
        self._stop_fetching(release.bundle_sha256)
        self._advance(events.FetchFailed(release.bundle_sha256, refusal, detail))

    def _stop_fetching(self, bundle: Sha256) -> None:
        fetch = self._fetches.pop(bundle, None)
        if fetch is not None and fetch.current is not None:
            self._wire.unlisten(fetch.current.file.sha256)

    # -- reporting ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Publish what the outbox holds, oldest first; what stays unacknowledged is published again later."""
        now = self._clock()
        pending = self._journal.pending(OUTBOX_IN_FLIGHT)
        # What a full outbox dropped is never acknowledged, and would be waited for without end.
        self._sent = {event.id: self._sent[event.id] for event in pending if event.id in self._sent}
        for event in pending:
            sent_at = self._sent.get(event.id)
            if sent_at is None or now >= sent_at + RESEND_S or now < sent_at:
                self._sent[event.id] = now
                self._wire.publish(self._own(Channel.EVENT), encode(event), qos=1)

    def _acknowledged(self, ack: Ack) -> None:
        self._journal.forget(ack.ids)
        for event_id in ack.ids:
            self._sent.pop(event_id, None)
        if len(self._sent) < OUTBOX_IN_FLIGHT // 2:
            self._flush()

    def _publish_twin(self) -> None:
        if not self._connected:
            return
        self._twin_sequence += 1
        self._twin_dirty = False
        self._twin_at = self._clock()
        twin = self.twin()
        self._wire.publish(self._own(Channel.TWIN), encode(twin), qos=1, retain=True)

    def twin(self) -> Twin:
        """Return what this device reports of itself now."""
        return Twin(
            device=self.identity.device,
            sent_at=self._clock(),
            boot=self.identity.boot,
            sequence=self._twin_sequence,
            agent_version=self.identity.agent_version,
            counter=self._state.counter,
            hardware=self.identity.hardware,
            labels=self.identity.labels,
            timezone=self.identity.timezone,
            models=tuple(self._twin_model(name, self._state.models[name]) for name in sorted(self._state.models)),
            host=self._host.telemetry(),
            endpoint=self.identity.endpoint,
        )

    def _twin_model(self, name: ModelName, model: ModelState) -> TwinModel:
        served = self._lab.served(name)
        pending = model.update
        return TwinModel(
            model=name,
            phase="idle" if pending is None else pending.phase.value,
            active=model.slots.active,
            standby=model.slots.standby,
            desired=model.slots.active if pending is None else pending.release,
            progress=None if pending is None else self._progress(pending.release),
            engine=None if served is None else served.engine,
            requests=0 if served is None else served.requests,
            latency_ms_p95=None if served is None else served.latency_ms_p95,
            last_error=model.last_error,
            tuning=None if served is None else served.tuning,
            errors=0 if served is None else served.did.errors,
            slow=0 if served is None else served.did.slow,
            inferences=0 if served is None else served.did.inferences,
            cpu_ms=None if served is None else served.did.cpu_ms,
            drift=None if served is None else served.did.drift,
        )

    def _progress(self, release: ReleaseRef) -> float | None:
        fetch = self._fetches.get(release.bundle_sha256)
        if fetch is None or not fetch.length:
            return None
        done = sum(file.length for file in fetch.files if self._store.has(file.sha256))
        return min(1.0, (done + (fetch.current.bytes_here if fetch.current else 0)) / fetch.length)

    def _own(self, channel: Channel) -> DeviceTopic:
        return DeviceTopic(self.identity.device, channel)

    def _malformed(self, topic: Topic, error: WireError) -> None:
        self.counters.malformed += 1
        if self.counters.malformed == 1:
            log.warning("message_malformed", topic=str(topic), error=str(error))
