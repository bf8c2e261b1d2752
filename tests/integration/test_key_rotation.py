"""Every key of a fleet is replaced while a device is away; it comes back, follows the chain and converges.

The device is a real agent process on a real broker, at last also an enrolled one over mTLS with a whole controller. The
people are folders that exchange a ceremony file.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from harness.desk import client, local_token
from harness.fleet_of_one import MODEL, Agent, Fleet, Works, doubling_fleet, free_port, now, own_broker, wait_until
from muster_controller.broker.embedded import EmbeddedBroker
from muster_controller.identity.ca import FleetCa
from muster_controller.registry.ceremony import finish, join, sign
from muster_controller.registry.ceremony_begin import Rotation, begin_release, begin_rotate
from muster_controller.registry.ceremony_file import Ceremony, encode_ceremony, parse_ceremony
from muster_controller.registry.errors import ThresholdNotMet
from muster_controller.registry.keys import load_signer
from muster_controller.registry.operator import add_signature, all_roots, load_offline, newest, newest_releases
from muster_controller.registry.tuf_repository import TufRepository, create_next_online_keys, create_online_keys
from muster_controller.whereabouts import read_running
from muster_shared.bundle import digest
from muster_shared.ids import FleetId
from muster_shared.messages import ReleaseRef, Step

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

ROLE = f"release-{MODEL}"
OLD = ("1", "2", "3")
YEAR = timedelta(days=366)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with own_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class People:
    """The holders, and the controller's side of a ceremony."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self.operator = works.folder / "operator"
        for holder in OLD:  # Whoever made the first keys in one place hands them out afterwards.
            for path in (self.operator / "keys").glob(f"*-{holder}.pem"):
                (self.of(holder) / "keys").mkdir(parents=True, exist_ok=True)
                path.rename(self.of(holder) / "keys" / path.name)

    def of(self, holder: str) -> Path:
        return self.works.folder / f"holder-{holder}"

    def rotate(self, rotation: Rotation, new: tuple[str, ...], signing: tuple[str, ...], at: datetime) -> Ceremony:
        ceremony = begin_rotate("c", self.operator, rotation, {}, at)
        for holder in new:
            ceremony, _ = join(self._carry(ceremony), self.of(holder), holder, at)
        return self.complete(ceremony, signing, at)

    def complete(self, ceremony: Ceremony, signing: tuple[str, ...], at: datetime) -> Ceremony:
        for holder in signing:
            ceremony, _ = sign(self._carry(ceremony), self.of(holder))
        finish(self._carry(ceremony), self.operator, at)
        return ceremony

    def push(self) -> None:
        offline = load_offline(self.operator)
        assert self.works.repository.accept_offline(
            offline.root,
            offline.targets,
            offline.keys,
            now(),
            between=all_roots(self.operator)[:-1],
            releases=newest_releases(self.operator),
        )

    def publish(self, version: str, factor: float, signing: tuple[str, ...]) -> ReleaseRef:
        release = self.works.release(version, factor=factor, signed=False)
        bundle = self.works.folder / f"bundle-{version}"
        self.complete(begin_release("r", self.operator, bundle, None, now()), signing, now())
        raw = newest(self.operator, ROLE)
        assert raw is not None
        manifest = (bundle / "bundle.json").read_bytes()
        assert digest(manifest) == release.bundle_sha256
        assert self.works.repository.accept_release(ROLE, raw, manifest, now())
        return release

    def _carry(self, ceremony: Ceremony) -> Ceremony:
        return parse_ceremony(encode_ceremony(ceremony))


def names(role: str, holders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{role}-{holder}" for holder in holders)


def keyids(works: Works) -> dict[str, set[str]]:
    """Return the ids of every key in force, by role."""
    files: Mapping[str, str] = {
        name: text for message in works.repository.trust_messages() for name, text in message.files.items()
    }
    offline = load_offline(works.folder / "operator")
    root = Metadata[Root].from_bytes(offline.root).signed
    targets = Metadata[Targets].from_bytes(offline.targets).signed
    found = {role: set(held.keyids) for role, held in root.roles.items()}
    found[ROLE] = set(targets.get_delegated_role(ROLE).keyids)
    found["assignment"] = set(json.loads(files["keys/assignment.json"])["keys"])
    return found


def come_back(fleet: Fleet, folder: Path, broker: EmbeddedBroker) -> None:
    fleet.agent = Agent.start(folder, broker_url=broker.url)


def test_a_device_that_was_away_while_every_key_was_replaced_comes_back_and_converges(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    works = Works.open(tmp_path / "works")
    with doubling_fleet(works, broker, FleetId("rotated"), tmp_path / "device") as fleet:
        assert fleet.answer() == [2.0, 4.0]
        fleet.agent.stop()
        people, before = People(works), keyids(works)

        new = ("dora", "emil", "fay")
        long_ago = now() - YEAR  # The root of this ceremony has run out by now.
        rotation = Rotation(add=names("root", new), remove=names("root", OLD))
        people.rotate(rotation, new, ("1", "3", "dora", "emil"), long_ago)
        rotation = Rotation(add=names("targets", new), remove=names("targets", OLD))
        people.rotate(rotation, new, ("dora", "fay", "emil"), now())
        rotation = Rotation(add=names(ROLE, new), remove=names(ROLE, OLD))
        people.rotate(rotation, new, ("emil", "fay"), now())
        people.push()
        online = create_next_online_keys(works.folder / "controller")
        people.rotate(Rotation(online=online), (), ("fay", "dora"), now())
        people.push()
        works.repository = TufRepository(works.folder / "controller")  # It holds after a restart, too.
        release = people.publish("2.0.0", 3.0, ("dora", "fay"))
        come_back(fleet, tmp_path / "device", broker)
        fleet.assign(2, release)

        fleet.wait_for_step(release, Step.COMMITTED)
        assert fleet.answer() == [3.0, 6.0]

        after = keyids(works)
        assert {role for role in before if before[role] & after[role]} == set()
        roots = [Metadata[Root].from_bytes(raw).signed for raw in all_roots(people.operator)]
        assert [root.version for root in roots] == [1, 2, 3, 4]
        assert roots[1].is_expired(now())


def test_a_stolen_release_key_below_the_threshold_is_taken_away_and_the_device_goes_on(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    works = Works.open(tmp_path / "works")
    with doubling_fleet(works, broker, FleetId("stolen"), tmp_path / "device") as fleet:
        people = People(works)
        rotation = Rotation(add=(f"{ROLE}-dora",), remove=(f"{ROLE}-1",))
        people.rotate(rotation, ("dora",), ("1", "2"), now())
        people.push()
        evil = works.release("6.6.6", factor=6.0, signed=False)
        ceremony = begin_release("e", people.operator, works.folder / "bundle-6.6.6", None, now())
        with_stolen = ceremony.parts[ROLE].encode()
        for holder in ("1", "2"):  # The thief, and a holder whom he has talked into it.
            with_stolen = add_signature(with_stolen, load_signer(people.of(holder) / "keys" / f"{ROLE}-{holder}.pem"))
        manifest = (works.folder / "bundle-6.6.6" / "bundle.json").read_bytes()

        with pytest.raises(ThresholdNotMet):
            works.repository.accept_release(ROLE, with_stolen, manifest, now())
        release = people.publish("7.0.0", 3.0, ("2", "dora"))
        fleet.assign(2, release)

        fleet.wait_for_step(release, Step.COMMITTED)
        assert fleet.answer() == [3.0, 6.0]
        assert evil.version not in {path.path.split("/")[2] for path in works.repository.releases()}


def test_a_device_takes_no_assignment_of_the_key_that_was_replaced(tmp_path: Path, broker: EmbeddedBroker) -> None:
    works = Works.open(tmp_path / "works")
    with doubling_fleet(works, broker, FleetId("replaced"), tmp_path / "device") as fleet:
        people, data = People(works), works.folder / "controller"
        stolen = load_signer(data / "keys" / "assignment.pem")
        people.rotate(Rotation(online=create_next_online_keys(data)), (), ("1", "2"), now())
        people.push()
        release = people.publish("2.0.0", 3.0, ("1", "2"))

        fleet.assign(2, release, signer=stolen)
        refusal = fleet.wait_for_refusal()
        fleet.assign(2, release)

        fleet.wait_for_step(release, Step.COMMITTED)
        assert "rotated" in str(refusal) or "trusted assignment key" in str(refusal)
        assert create_online_keys(data).assignment.keyid != stolen.public_key.keyid


# -- an enrolled device, and everything that the controller holds ------------------------------------------------------

AT_ONCE = {"waves": ["100%"], "controls_per_device": 0, "success_required": 0.0, "window_s": 0.2, "requests_min": 0}

DEVICE = "/devices/crane-07"


class Site:
    """A controller and a device, each a process with its own command line, over mTLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "works" / "controller"
        self.ports = [str(free_port()) for _ in range(3)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        listen = f"127.0.0.1:{free_port()}"
        self.environment = {
            **kept,
            "MUSTER_AGENT_HTTP_LISTEN": listen,
            "MUSTER_DATA": str(self.data),
            "HOME": str(folder),
        }

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the controller until the end of the block, always on the same ports."""
        (self.data / "server.json").unlink(missing_ok=True)
        port, broker_port, device_port = self.ports
        words = ["serve", "--data", str(self.data), "--fleet", "harbour", "--port", port]
        words += ["--broker-port", broker_port, "--device-port", device_port]
        with self._running("muster_controller.cli.main", *words) as process:
            wait_until(lambda: process.poll() is not None or read_running(self.data) is not None, self._logs)
            yield

    @contextmanager
    def device(self) -> Iterator[None]:
        with self._running("muster_agent.cli", "run", "--config", str(self.folder / "agent.toml")):
            yield

    def say(self, module: str, *words: str, stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment,
            cwd=self.folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def muster(self, *words: str) -> str:
        return self.say("muster_controller.cli.main", "--url", f"http://127.0.0.1:{self.ports[0]}", *words)

    def get(self, path: str) -> Any:
        with client(f"http://127.0.0.1:{self.ports[0]}", local_token(self.data)) as http:
            return http.get(path).raise_for_status().json()

    def post(self, path: str, body: object) -> Any:
        with client(f"http://127.0.0.1:{self.ports[0]}", local_token(self.data)) as http:
            return http.post(path, json=body).raise_for_status().json()

    def wait_for_device(self, counter: int, version: str) -> None:
        """Wait until the device is online, has accepted this assignment or a later one, and serves the version."""

        def is_there() -> bool:
            found = self.get(DEVICE)
            return found["online"] and found["accepted_counter"] >= counter and found["active"] == {MODEL: version}

        wait_until(is_there, self._logs)

    @contextmanager
    def _running(self, module: str, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
        with (self.folder / f"{module}.log").open("ab") as out:
            command = [sys.executable, "-m", module, *words]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, cwd=self.folder)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))


def publish_to(site: Site, people: People, works: Works, version: str, factor: float) -> None:
    """Sign a release, bring it to the controller that runs, and roll it out at once."""
    works.release(version, factor=factor, signed=False)
    bundle = works.folder / f"bundle-{version}"
    people.complete(begin_release("r", people.operator, bundle, None, now()), ("1", "2"), now())
    number = len(list((people.operator / "metadata").glob(f"*.{ROLE}.json")))
    site.muster(
        "model", "publish", str(bundle), "--signed", str(people.operator / "metadata" / f"{number}.{ROLE}.json")
    )
    site.post("/rollouts", {"model": MODEL, "version": version, "policy": AT_ONCE})


@pytest.mark.timeout(300)
def test_an_enrolled_device_that_was_away_follows_new_online_keys_and_a_new_intermediate(tmp_path: Path) -> None:
    works, site = Works.open(tmp_path / "works"), Site(tmp_path)
    people = People(works)
    with site.serving():
        token = json.loads(site.muster("enroll-token", "create", "--json"))["token"]
        where = ("--config", str(tmp_path / "agent.toml"), "--data-dir", str(tmp_path / "device"))
        who = ("--device", "crane-07", "--class", "lab", "--controller", f"https://127.0.0.1:{site.ports[2]}")
        site.say("muster_agent.cli", "enrol", *who, *where, "--token", "-", stdin=token)
        with site.device():
            wait_until(lambda: site.get("/status")["online"] == 1, site._logs)
            publish_to(site, people, works, "1.0.0", 2.0)
            site.wait_for_device(1, "1.0.0")
        before = site.get(DEVICE)["assignment_counter"]
        old = keyids_of(site)

        people.rotate(Rotation(online=create_next_online_keys(site.data)), (), ("2", "3"), now())
        site.muster("trust", "push", str(people.operator))
        site.muster("ca", "renew", "--data", str(site.data), "--new-key")
    with site.serving():
        after = site.get(DEVICE)["assignment_counter"]
        with site.device():
            site.wait_for_device(after, "1.0.0")
            publish_to(site, people, works, "2.0.0", 3.0)
            site.wait_for_device(after + 1, "2.0.0")
            renewed = json.loads(site.say("muster_agent.cli", "renew", "--json", *where[:2]))

    assert after > before
    assert not old & keyids_of(site)
    assert renewed["fingerprint"]
    assert FleetCa.existing(site.data, now().timestamp()).signer_pin not in old


def keyids_of(site: Site) -> set[str]:
    """Return what the controller signs with: its three keys' ids, and its intermediate's certificate."""
    keys = create_online_keys(site.data)
    authority = FleetCa.existing(site.data, now().timestamp()).signer_pin
    return {keys.snapshot.keyid, keys.timestamp.keyid, keys.assignment.keyid, authority}
