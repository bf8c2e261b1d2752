"""The last steps of the story: who has no business at the broker is turned away, and a device that is lost is put out.

stranger   no certificate              ─▶ no connection
visitor    the fleet's certificate     ─▶ its own topics, and nothing of another device
revoked    a certificate that was good ─▶ cut, kept out, and no new certificate
"""

import time

from muster_agent.errors import EnrolmentRefused
from muster_agent.identity.client import renew
from muster_agent.identity.folder import IdentityFolder
from muster_agent.identity.key_uri import FILE
from muster_agent.identity.keys import open_key
from muster_shared.ids import DeviceId
from muster_shared.link import parse_broker_url
from muster_shared.messages import Presence, encode
from muster_shared.topics import Channel, ControllerTopic, DeviceTopic, build
from muster_simulator.demo import plan
from muster_simulator.demo.caller import Caller
from muster_simulator.demo.desk import Desk
from muster_simulator.demo.display import Display
from muster_simulator.demo.enrolling import Registrar
from muster_simulator.demo.hands import Hands
from muster_simulator.demo.plan import FLEET, REVOKED, STRANGER, VICTIM, VISITOR
from muster_simulator.demo.stage import Stage
from muster_simulator.demo.summary import RefusalSummary

LOOK_S = 0.02


class Strangers:
    """Tries, and checks that it came to nothing."""

    def __init__(self, stage: Stage, display: Display, desk: Desk, hands: Hands) -> None:
        self.refusals: list[RefusalSummary] = []
        self.cut_off_s: float | None = None
        self._stage = stage
        self._display = display
        self._desk = desk
        self._hands = hands
        self._broker = parse_broker_url(stage.broker_url)

    def try_without(self) -> None:
        """Somebody without a certificate calls."""
        with self._call(STRANGER, None) as stranger:
            answer = stranger.turned_away()
        self._hands.check(answer is not None, "the broker let somebody in who has no certificate")
        self._refused(STRANGER, "calls the broker without a certificate", f"turned away ({answer})")

    def try_as_another(self, registrar: Registrar) -> None:
        """A device with a good certificate of its own reads and forges what is another's."""
        hands = self._hands
        folder = self._stage.folder / "visitor"
        identity = registrar.enrol(VISITOR, folder, "visitor")
        with self._call(VISITOR, identity) as visitor:
            hands.check(visitor.comes_in(), f"the broker does not let {VISITOR} in, though it is enrolled")

            orders, open_to_all = _topic(VICTIM, Channel.ASSIGNMENT), build(FLEET, ControllerTopic())
            heard = visitor.hears([orders, open_to_all], open_to_all)
            hands.check(heard == {open_to_all}, f"{VISITOR} heard {sorted(heard)}, and {open_to_all} alone is for it")
            self._refused(VISITOR, f"asks for the orders of {VICTIM} with its own certificate", "they never come")

            gone = Presence(device=VICTIM, boot=self._boot_of_victim(), online=False, sent_at=time.time())
            answer = visitor.say(_topic(VICTIM, Channel.PRESENCE), encode(gone))
        said_at = time.time()
        # The next twin does not make it online again, and what came before it has been worked off then.
        heard_again = f"the controller hears of {VICTIM} again"
        hands.until(heard_again, lambda: self._desk.device(VICTIM).seen_at > said_at, plan.CONVERGE_S, VICTIM)
        hands.check(self._desk.device(VICTIM).online, f"{VISITOR} made the controller believe that {VICTIM} is gone")
        self._refused(VISITOR, f"says in the name of {VICTIM} that it is gone", answer)

    def revoke(self) -> None:
        """Revoke a device that is there and serves: it is cut, and does not come back."""
        hands = self._hands
        hands.until(f"{REVOKED} has a connection", lambda: self._is_online() is True, plan.CONVERGE_S, REVOKED)
        ordered_at = time.monotonic()
        self._desk.revoke(REVOKED, "stolen")
        hands.until(f"{REVOKED} is cut off", lambda: self._is_online() is False, plan.CUT_OFF_S, REVOKED, LOOK_S)
        self.cut_off_s = time.monotonic() - ordered_at
        self._display.say(f"{REVOKED} is revoked: {self.cut_off_s:.1f} s after the order its connection is cut")

        identity = self._stage.agent_identity(REVOKED)
        with self._call(REVOKED, identity) as again:
            answer = again.turned_away()
        hands.check(answer is not None, f"the broker let {REVOKED} in again", REVOKED)
        self._refused(REVOKED, "calls again with the certificate that was good until now", f"turned away ({answer})")
        try:
            renew(identity, open_key(FILE, identity, make=False))
        except EnrolmentRefused as error:
            hands.check(
                error.code == "revoked", f"{REVOKED} got no certificate, but not because it is revoked: {error}"
            )
            self._refused(REVOKED, "asks for another certificate with its identity key", error.reason)
        else:
            hands.check(False, f"{REVOKED} is revoked, and got a new certificate", REVOKED)
        hands.check(not self._is_online(), f"{REVOKED} is back", REVOKED)

    def _call(self, device: DeviceId, identity: IdentityFolder | None) -> Caller:
        # The CA is no secret: whoever asks the device port gets it.
        ca = self._stage.agent_identity(VICTIM).ca_path
        return Caller(self._broker, f"muster-{FLEET}-{device}", ca=ca, identity=identity)

    def _boot_of_victim(self) -> str:
        """Return what a forged word must carry to be believed; every application on the device can ask for it."""
        found: list[str] = []

        def told() -> bool:
            said = self._hands.status(VICTIM)
            found.extend([] if said is None else [str(said["device"]["boot"])])
            return bool(found)

        self._hands.until(f"{VICTIM} tells of itself", told, plan.CONVERGE_S, VICTIM)
        return found[0]

    def _is_online(self) -> bool | None:
        """Whether `REVOKED` has a connection, as it says itself; None while it is too busy to say."""
        said = self._hands.status(REVOKED)
        return None if said is None else bool(said["online"])

    def _refused(self, who: DeviceId, tried: str, answer: str) -> None:
        self.refusals.append(RefusalSummary(who=who, tried=tried, answer=answer))
        self._display.say(f"{who} {tried}: {answer}")


def _topic(device: DeviceId, channel: Channel) -> str:
    return build(FLEET, DeviceTopic(device, channel))
