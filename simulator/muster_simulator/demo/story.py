"""The story, step by step. Each step acts as an operator would, waits with a deadline, and checks what it claims.

start ─▶ publish ─▶ first releases ─▶ 2.0.0 in waves ─▶ 3.0.0 aborts ─▶ digits 2.1.0 under faults ─▶ strangers
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from muster_controller.mixer.folder import MixerFolder
from muster_controller.registry.operator import init_operator
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.enrolment import parse_token
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_shared.metrics import LAB_BEHIND_S
from muster_simulator.demo import plan
from muster_simulator.demo.desk import Desk, DeskRefused
from muster_simulator.demo.display import Display
from muster_simulator.demo.enrolling import Registrar
from muster_simulator.demo.hands import CONTROLLER, Hands
from muster_simulator.demo.plan import AGENTS, CUT, DIGITS, KILLED, MAGIKA, MODELS, REVOKED
from muster_simulator.demo.processes import Crew
from muster_simulator.demo.stage import HOST, Stage
from muster_simulator.demo.strangers import Strangers
from muster_simulator.demo.summary import FaultSummary, Summary, TrafficSummary, VersionSeen
from muster_simulator.demo.traffic import Endpoint, Traffic
from muster_simulator.demo.watcher import Watcher
from muster_simulator.demo.wire_cut import WireCut
from muster_simulator.workloads import catalogue


class Story:
    """One telling. `tell` it, then `summary`; `stop` in any case."""

    def __init__(self, stage: Stage, crew: Crew, display: Display, opening: Callable[[Stage, Desk], None]) -> None:
        """`opening` is called when the controller and its broker answer, before anybody else comes."""
        self._stage = stage
        self._crew = crew
        self._display = display
        self._desk = Desk(stage.url, stage.controller, stage.operator)
        self._hands = Hands(stage, crew, display, self._desk)
        self._watcher = Watcher(stage.url, stage.controller)
        self._line = WireCut(HOST, stage.broker_port)
        self._traffic: Traffic | None = None
        self._traffic_at = 0.0
        self._broker = ""
        self._faults: list[FaultSummary] = []
        self._strangers = Strangers(stage, display, self._desk, self._hands)
        self._opening = opening

    @property
    def devices(self) -> int:
        """All of them, real and simulated."""
        return len(AGENTS) + self._stage.options.devices

    def tell(self) -> None:
        """Raises MusterError (CheckFailed, ProcessFailed, DeskRefused, …) when something does not hold."""
        simulated = self._stage.options.devices
        step = self._display.step
        with step(f"Start controller, broker, five agents and {simulated} simulated devices; build the models"):
            registrar = self._start()
        with step("Sign seven releases with two of three keys of their model, and publish them"):
            self._publish()
        with step("Bring digits and magika 1.0.0 to every device; applications begin to ask"):
            traffic = self._first_releases()
        with step("Roll out 2.0.0 of both in waves, on evidence"):
            self._better_releases(traffic)
        with step("Roll out 3.0.0 of both, which answer worse than they claim"):
            self._worse_releases()
        with step("Roll out digits 2.1.0 while a line is cut, an agent is killed and the broker restarts"):
            self._under_faults(traffic)
        with step("Ask what digits answers, without anybody knowing who was asked what"):
            self._anonymous()
        with step("Somebody without a certificate, and a device with the wrong one, try"):
            self._strangers.try_without()
            self._strangers.try_as_another(registrar)
        with step(f"Revoke {REVOKED}"):
            self._strangers.revoke()
        self._check_traffic(traffic)

    def stop(self) -> None:
        if self._traffic is not None:
            self._traffic.stop()
        self._watcher.stop()
        self._line.stop()
        self._desk.close()

    def link(self) -> str:
        """Return a link that logs in to the page, once; the one before it is void. Raises DeskRefused."""
        return self._desk.link()

    def summary(self, error: MusterError | None) -> Summary:
        """Return what was found, also of a story that ended early."""
        counters: Mapping[str, int] = {}
        with suppress(DeskRefused):
            counters = self._desk.status().counters
        return Summary(
            ok=error is None,
            reason=None if error is None else str(error),
            seconds=self._display.elapsed_s,
            steps=dict(self._display.took_s),
            url=self._stage.url,
            broker=self._broker,
            agents=len(AGENTS),
            simulated=self._stage.options.devices,
            bytes_sent=counters.get("bytes_sent", 0),
            bytes_fetched=sum(rollout.bytes_fetched for rollout in self._hands.rollouts),
            assignments=counters.get("assignments", 0),
            events=counters.get("events", 0),
            rollouts=tuple(self._hands.rollouts),
            traffic=None if self._traffic is None else self._traffic_summary(self._traffic),
            faults=tuple(self._faults),
            refusals=tuple(self._strangers.refusals),
            cut_off_s=self._strangers.cut_off_s,
        )

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _start(self) -> Registrar:
        stage, crew, hands = self._stage, self._crew, self._hands
        for model in MODELS:
            crew.start(stage.build_program(model))
        now = datetime.now(UTC)
        mixer = MixerFolder.create(stage.mixer, plan.MIXER).card()
        keys = create_online_keys(stage.controller)
        offline = init_operator(stage.operator, MODELS, keys, now, mixers={mixer.key_id: mixer.public_key})
        TufRepository(stage.controller).accept_offline(offline.root, offline.targets, offline.keys, now)
        self._display.say("keys: 2 of 3 for root, for targets and for each model; the controller holds none of them")
        crew.start(stage.controller_program())
        hands.until("the controller answers", self._is_up, plan.READY_S, CONTROLLER)
        self._broker = hands.broker().name()
        self._display.say(f"controller at {stage.url}, its broker ({self._broker}) at {stage.broker_url}")
        self._display.say(f"log in to its page as admin, once: {self.link()}")
        self._display.say(f"or without: MUSTER_DATA={stage.controller} muster status, and `muster user link admin`")

        self._opening(stage, self._desk)
        self._desk.admit(MixerFolder(stage.mixer))
        crew.start(stage.mixer_program())
        self._display.say(f"{plan.MIXER} was admitted; it alone can read what devices measure (key {mixer.key_id})")

        self._line.start()
        registrar = self._enrol()
        for agent in AGENTS:
            crew.start(stage.agent_program(agent, self._line.port if agent.device == CUT else None))
        crew.start(stage.load_program())
        self._watcher.start()
        self._display.watch(self._watcher.lines)
        hands.until(f"all {self.devices} devices are there", self._are_known, plan.READY_S, "load")
        self._display.say(f"{self.devices} devices are there")
        for model in MODELS:
            name = stage.build_program(model).name
            hands.until(f"{model} is built", partial(self._has_ended, name), plan.BUILD_S, name)
            crew.finish(name, plan.READY_S)
        self._display.say("the models are built")
        return registrar

    def _enrol(self) -> Registrar:
        """Enrol every device with one token, as many devices of a site are."""
        stage, began_at = self._stage, time.monotonic()
        made = self._desk.enrol_token(self.devices + 1, plan.TOKEN_S)  # One more comes later, and behaves badly.
        registrar = Registrar(made.device_url, parse_token(made.token))
        agents = [(agent.device, stage.agent_identity(agent.device).path, agent.device_class) for agent in AGENTS]
        simulated = stage.simulated_devices().items()
        registrar.enrol_all([*agents, *((one, stage.simulated_identities / one, kind) for one, kind in simulated)])
        took_s = time.monotonic() - began_at
        self._display.say(f"{self.devices} devices enrolled with a token at {made.device_url} in {took_s:.1f} s")
        return registrar

    def _publish(self) -> None:
        # A release counter only rises, so digits 2.1.0 is signed before 3.0.0, which comes to nothing.
        for model, versions in ((DIGITS, plan.DIGITS_VERSIONS), (MAGIKA, plan.MAGIKA_VERSIONS)):
            for version in versions:
                manifest = self._desk.publish(self._stage.bundles / model / version)
                size = sum(file.length for file in manifest.files)
                claim = f"{manifest.slo.accuracy or 0:.0%}"
                self._display.say(f"{model} {version}: {size / 1e3:,.0f} kB, claims that {claim} of answers are right")

    def _first_releases(self) -> Traffic:
        traffic = self._traffic = Traffic(
            [Endpoint(device, HOST, port) for device, port in self._stage.agent_ports.items()],
            {model: catalogue.inputs(model) for model in MODELS},
            plan.REAL_REQUESTS_PER_S,
        )
        traffic.start()
        self._traffic_at = time.monotonic()
        self._watcher.watch(traffic)
        versions = dict.fromkeys(MODELS, "1.0.0")
        for rollout in self._hands.roll_out(versions, plan.FIRST_RELEASE):
            self._hands.check_finished(rollout)
        self._hands.check_everywhere(versions)
        self._let_flow(traffic, versions)
        return traffic

    def _better_releases(self, traffic: Traffic) -> None:
        versions = dict.fromkeys(MODELS, "2.0.0")
        for rollout in self._hands.roll_out(versions, plan.STAGED):
            self._hands.check_finished(rollout)
        self._hands.check_everywhere(versions)
        self._let_flow(traffic, versions)

    def _worse_releases(self) -> None:
        hands = self._hands
        for rollout in hands.roll_out(dict.fromkeys(MODELS, "3.0.0"), plan.STAGED):
            name, report = f"{rollout.model} {rollout.version}", hands.report_of(rollout)
            hands.check(rollout.state == "aborted", f"{name} is {rollout.state}, not aborted: {rollout.reason}")
            hands.check(report.exposed < report.devices / 2, f"{name} reached {report.exposed} devices")
            returned = rollout.counts.returned
            hands.check(returned == report.exposed, f"{returned} of {report.exposed} devices came back from {name}")
            fetched = report.bytes_fetched_after_abort
            hands.check(fetched == 0, f"devices fetched {fetched} bytes to come back from {name}")
            self._display.say(f"{name}: {returned} exposed devices are back on {rollout.previous}, nothing was fetched")
        hands.check_everywhere(dict.fromkeys(MODELS, "2.0.0"))

    def _under_faults(self, traffic: Traffic) -> None:
        hands, version = self._hands, "2.1.0"
        self._line.cut()
        cut_at = time.monotonic()
        self._display.say(f"the line of {CUT} is cut; it goes on serving, and the broker tells of it in some seconds")
        hands.until(f"{CUT} is seen offline", lambda: not self._desk.device(CUT).online, plan.OFFLINE_S, CONTROLLER)

        rollout = self._desk.start_rollout(DIGITS, version, plan.STAGED)
        disturbed = hands.disturb(rollout.id, KILLED, DIGITS, version, traffic)
        (ended,) = hands.await_rollouts([rollout.id])
        hands.check_finished(ended)
        what = f"killed in the phase {disturbed.phase} of its update"
        self._faulted(KILLED, what, hands.await_version(KILLED, DIGITS, version) - disturbed.killed_at)
        restarts = self._crew[KILLED].restarts
        hands.check(restarts == 1, f"{KILLED} was started again {restarts} times", KILLED)
        reconnects = self._desk.status().counters["reconnects"]
        hands.check(reconnects >= 1, "the broker was restarted, but the controller never reconnected")
        waited = next(member for member in self._desk.members(rollout.id) if member.device == CUT)
        hands.check(waited.arm == "waiting", f"{CUT} was {waited.arm}, though its line was cut")
        hands.check(traffic.report().failed == 0, f"requests failed: {traffic.report().failures}", CUT)
        self._display.say(f"{ended.reason}")

        self._line.mend()
        mended_at = time.monotonic()
        away_s = mended_at - cut_at
        self._display.say(f"the line of {CUT} is mended after {away_s:.0f} s")
        self._faulted(CUT, f"cut off for {away_s:.0f} s", hands.await_version(CUT, DIGITS, version) - mended_at)
        hands.check_everywhere({DIGITS: version, MAGIKA: "2.0.0"})
        self._let_flow(traffic, {DIGITS: version})

    def _anonymous(self) -> None:
        """Wait for sums of the mixer at the controller, and say how much can be known of so few devices."""
        since = self._stage.began_at - LAB_BEHIND_S
        found = self._desk.classes(DIGITS, since)

        def mixed() -> bool:
            nonlocal found
            found = self._desk.classes(DIGITS, since)
            return len(found.points) >= plan.MIXED_HOURS

        self._hands.until("the mixer's sums are at the controller", mixed, plan.MIXED_S, plan.MIXER, every_s=1.0)
        windows = max(each.figure.devices for point in found.points for each in point.figures)
        known = [each for each in found.figures if each.figure.value is not None]
        hours = f"{len(found.points)} hours, 10 s each"
        self._display.say(f"{plan.MIXER} has published {hours}, of up to {windows} windows, with noise")
        for each in known[:3]:
            value, low, high = each.figure.value or 0.0, each.figure.low or 0.0, each.figure.high or 1.0
            self._display.say(f"class {each.name}: {value:.1%} of answers, between {low:.1%} and {high:.1%}")
        if not known:
            few = f"{self.devices} devices in {len(found.points)} hours are too few to know the share of a class"
            self._display.say(f"{few}: {self._stage.url}/privacy says what is sent")

    # -- traffic -----------------------------------------------------------------------------------------------------

    def _let_flow(self, traffic: Traffic, versions: Mapping[ModelName, str]) -> None:
        """Wait until applications have seen enough of `versions` on every agent to say how good they are."""

        def enough() -> bool:
            seen = traffic.report().seen
            return all(
                ((each := seen.get((agent.device, model, version))) is not None and each.labelled >= plan.SEEN_MIN)
                or self._hands.went_back(agent.device, model, version)
                for agent in AGENTS
                for model, version in versions.items()
            )

        self._hands.until("applications see the release on every agent", enough, plan.SEEN_S, AGENTS[0].device)
        found = traffic.report().by_version()
        for model, version in versions.items():
            share = found[model][version].accuracy or 0.0
            self._display.say(f"applications see {model} {version}: {share:.1%} of answers right")

    def _check_traffic(self, traffic: Traffic) -> None:
        report = traffic.report()
        failures = "; ".join(report.failures[:3])
        self._hands.check(report.failed == 0, f"{report.failed} requests failed: {failures}", AGENTS[0].device)
        found = report.by_version()
        for model in MODELS:
            before, after = found[model]["1.0.0"].accuracy or 0.0, found[model]["2.0.0"].accuracy or 0.0
            self._hands.check(before < after, f"{model} 2.0.0 answers {after:.1%} right, 1.0.0 {before:.1%}")

    def _traffic_summary(self, traffic: Traffic) -> TrafficSummary:
        report = traffic.report()
        return TrafficSummary(
            requests=report.requests,
            failed=report.failed,
            while_down=report.while_down,
            asked_anew=report.asked_anew,
            seconds=report.at - self._traffic_at,
            real=tuple(
                VersionSeen(
                    model=model,
                    version=version,
                    requests=seen.requests,
                    labelled=seen.labelled,
                    accuracy=seen.accuracy,
                )
                for model, versions in report.by_version().items()
                for version, seen in versions.items()
            ),
            simulated=self._simulated(),
        )

    def _simulated(self) -> tuple[VersionSeen, ...]:
        """Return what the simulated devices were asked, as their status file says."""
        try:
            tallies: dict[str, Any] = msgspec.json.decode(self._stage.load_status.read_bytes())["tallies"]
        except (OSError, msgspec.MsgspecError):
            return ()
        return tuple(
            VersionSeen(
                model=model,
                version=version,
                requests=tally["requests"],
                labelled=tally["requests"],
                accuracy=tally["right"] / tally["requests"] if tally["requests"] else None,
            )
            for model, versions in sorted(tallies.items())
            for version, tally in sorted(versions.items())
        )

    # -- the rest ----------------------------------------------------------------------------------------------------

    def _is_up(self) -> bool:
        try:
            return self._desk.health().broker_connected
        except DeskRefused:
            return False

    def _has_ended(self, name: str) -> bool:
        return not self._crew[name].is_running

    def _are_known(self) -> bool:
        devices = self._desk.devices()
        return len(devices) == self.devices and all(each.online and each.agent_version for each in devices)

    def _faulted(self, device: str, what: str, seconds: float) -> None:
        self._faults.append(FaultSummary(device=device, what=what, seconds=seconds))
        self._display.say(f"{device}: {what}; it ran what it should {seconds:.1f} s later")
