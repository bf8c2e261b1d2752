"""What a running agent does about its certificate, with a clock, a link and a controller in memory."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from muster_agent.core.renewal import AWAY_S, START_SPREAD_S, Declined, Failed
from muster_agent.identity.folder import Credentials, Enrolled, IdentityFolder
from muster_agent.identity.renewing import Clock, Renewing
from muster_agent.status import identity_page
from muster_shared.ids import DeviceId, FleetId
from muster_shared.link import BrokerAddress, LinkCounters

DAY = 86400.0
T0 = 1_800_000_000.0


@dataclass
class MemoryLink:
    """As much of a link as renewals see."""

    is_connected: bool = True
    reconnects: int = 0
    asked: list[BrokerAddress | None] = field(default_factory=list)

    @property
    def counters(self) -> LinkCounters:
        return LinkCounters(0, 0, 0, 0, self.reconnects)

    def reconnect(self, broker: BrokerAddress | None = None) -> None:
        self.asked.append(broker)
        self.reconnects += 1


class Device:
    """A device whose time only goes on when a test says so."""

    def __init__(self, path: Path, *, wall_s: float = T0, granted_at: float = T0, follows_broker: bool = True) -> None:
        self.controller_s = T0
        self.wall_s = wall_s
        self.boot_s = 50.0
        self.folder = IdentityFolder(path / "identity")
        self.link = MemoryLink()
        self.answers: list[Declined | Failed | None] = []
        self.asks = 0
        self.grants = 0
        self.broker_url = "mqtts://one:8883"
        first = self.grant(granted_at)
        self.renewing = Renewing(
            self.folder,
            first,
            key_kind="file",
            ask=self.ask,
            link=self.link,
            follows_broker=follows_broker,
            random=random.Random(1),
            wall=lambda: self.wall_s,
            since_boot=lambda: self.boot_s,
            look_s=600.0,
        )

    def grant(self, at: float) -> Enrolled:
        self.grants += 1
        enrolled = Enrolled(
            fleet=FleetId("harbour"),
            device=DeviceId("crane-07"),
            broker_url=self.broker_url,
            device_url="https://one:8443",
            fingerprint=f"{self.grants:064x}",
            identity_fingerprint="0" * 64,
            granted_at=at,
            renew_at=at + 3.5 * DAY,
            expires_at=at + 7 * DAY,
        )
        self.folder.put(Credentials(enrolled=enrolled, session_key=b"k", certificate="c", ca="a", root=b""))
        return enrolled

    async def ask(self) -> Declined | Failed | None:
        self.asks += 1
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            self.grant(self.controller_s)
        return answer

    def spend(self, seconds: float) -> None:
        """Let time go by, and the agent look as often as it says."""
        asyncio.run(self._spend(self.boot_s + seconds))

    async def _spend(self, until: float) -> None:
        while self.boot_s < until:
            pause_s = await self.renewing.look()
            step_s = min(max(pause_s, 1.0), until - self.boot_s)
            self.boot_s += step_s
            self.wall_s += step_s
            self.controller_s += step_s


def test_a_certificate_is_renewed_in_its_second_half_and_the_link_comes_again_before_the_first_is_over(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path)

    device.spend(3.5 * DAY)
    before = device.asks
    device.spend(3.4 * DAY)

    assert (before, device.asks) == (0, 1)
    assert device.link.asked == [BrokerAddress("one", 8883, tls=True)]


def test_a_month_of_agents_never_has_a_certificate_that_is_over(tmp_path: Path) -> None:
    device = Device(tmp_path)

    for _ in range(30):
        device.spend(DAY)
        assert device.renewing.status().expires_in_s > 0

    assert 6 <= device.asks <= 9


def test_a_link_that_came_by_itself_is_left_alone(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.grant(T0 + 1)  # As `muster-agent renew` does beside it.
    asyncio.run(device.renewing.look())

    device.link.reconnects += 1
    device.spend(3 * DAY)

    assert device.link.asked == []
    assert device.asks == 0


def test_a_link_that_is_away_goes_at_once_where_the_new_grant_says(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.link.is_connected = False
    device.broker_url = "mqtts://two:8883"
    device.grant(T0 + 1)

    asyncio.run(device.renewing.look())

    assert device.link.asked == [BrokerAddress("two", 8883, tls=True)]


def test_a_broker_that_the_operator_wrote_down_is_kept(tmp_path: Path) -> None:
    device = Device(tmp_path, follows_broker=False)
    device.link.is_connected = False
    device.broker_url = "mqtts://two:8883"
    device.grant(T0 + 1)

    asyncio.run(device.renewing.look())

    assert device.link.asked == [None]


def test_what_the_controller_refuses_is_in_the_status_and_on_the_metrics_page(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.answers = [Declined("device", "another identity key is known")]

    device.spend(5 * DAY)

    status = device.renewing.status()
    assert status.problem == ""
    assert device.asks == 2
    device.answers = [Declined("revoked", "revoked by ops: stolen")]
    device.spend(6 * DAY)
    status = device.renewing.status()
    assert (status.problem, status.next_at) == ("revoked by ops: stolen", None)
    assert 'muster_certificate_renewal_failing{key="file"} 1' in identity_page(status)
    assert f'muster_certificate_expires_timestamp_seconds{{key="file"}} {status.expires_at:.14g}' in identity_page(
        status
    )


def test_a_revoked_device_that_is_enrolled_again_goes_on(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.answers = [Declined("revoked", "revoked")]
    device.spend(5 * DAY)

    device.grant(device.controller_s)
    device.spend(6 * DAY)

    assert device.asks == 2
    assert device.renewing.status().problem == ""


def test_a_device_that_was_off_for_months_asks_within_seconds(tmp_path: Path) -> None:
    device = Device(tmp_path, wall_s=T0, granted_at=T0 - 90 * DAY)
    device.link.is_connected = False

    device.spend(START_SPREAD_S + 2)

    assert device.asks == 1
    assert len(device.link.asked) == 1


def test_a_clock_that_is_months_ahead_costs_one_renewal_and_no_more(tmp_path: Path) -> None:
    device = Device(tmp_path, wall_s=T0 + 100 * DAY)

    device.spend(2 * DAY)

    assert device.asks == 1
    assert device.renewing.status().expires_in_s == pytest.approx(5 * DAY, abs=100)


def test_a_clock_that_is_years_behind_does_not_keep_a_certificate_from_being_renewed(tmp_path: Path) -> None:
    device = Device(tmp_path, wall_s=0.0)

    device.spend(4.3 * DAY)

    assert device.asks == 1


def test_a_device_that_the_broker_does_not_let_in_asks_though_its_clock_sees_no_reason(tmp_path: Path) -> None:
    device = Device(tmp_path, wall_s=T0 + 3700)
    device.link.is_connected = False

    device.spend(AWAY_S - 120)
    before = device.asks
    device.spend(840)

    assert (before, device.asks) == (0, 1)


def test_a_controller_that_is_away_is_asked_ever_less_often_until_it_is_back(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.answers = [Failed("no route")] * 8

    device.spend(7 * DAY)

    assert device.asks == 9
    assert device.renewing.status().problem == ""


def test_a_grant_that_is_not_in_the_folder_is_a_problem_and_not_a_loop(tmp_path: Path) -> None:
    device = Device(tmp_path)

    async def says_so() -> None:
        device.asks += 1

    device.renewing._ask = says_so
    device.spend(4.3 * DAY)

    assert 1 <= device.asks < 80
    assert "not in the folder" in device.renewing.status().problem


def test_a_folder_that_is_damaged_is_a_problem_and_the_agent_goes_on(tmp_path: Path) -> None:
    device = Device(tmp_path)
    (device.folder.path / "current" / "enrolment.json").write_text("{")

    pause_s = asyncio.run(device.renewing.look())

    assert 0 <= pause_s <= 600.0
    assert "enrol again" in device.renewing.status().problem


def test_the_status_is_json(tmp_path: Path) -> None:
    status = msgspec.json.decode(msgspec.json.encode(Device(tmp_path).renewing.status()))

    assert (status["device"], status["fleet"], status["key"]) == ("crane-07", "harbour", "file")
    assert status["expires_in_s"] == 7 * DAY


def test_the_controllers_time_goes_on_while_the_wall_clock_jumps() -> None:
    wall, boot = [T0], [10.0]
    clock = Clock(lambda: wall[0], lambda: boot[0])
    clock.heard(T0 + 5)

    wall[0], boot[0] = 0.0, 70.0

    assert clock.now() == T0 + 65
