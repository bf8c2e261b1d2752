"""The desk: what people order of alerts, objectives and receivers, checked. Who may is the API's to say."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from muster_controller.acting import acting
from muster_controller.alerts.errors import ReceiverInvalid, TellingFailed
from muster_controller.alerts.mail import Mails
from muster_controller.alerts.mqtt import Login, check_target
from muster_controller.alerts.smtp import check_address
from muster_controller.alerts.telling import Teller
from muster_controller.alerts.webhook import check_url, new_secret
from muster_controller.core.alerts.burn import Burn, Indicator, Objective, assess
from muster_controller.core.alerts.finding import Severity
from muster_controller.core.alerts.grouping import body
from muster_controller.core.alerts.machine import Silence
from muster_controller.core.alerts.rules import RULES
from muster_controller.db.alert_store import AlertStore
from muster_controller.db.objective_store import ObjectiveStore
from muster_controller.db.receiver_store import Kind, Queue, Receiver, ReceiverStore
from muster_shared import ids
from muster_shared.errors import WireError

SILENCE_S_MAX: Final = 30 * 86_400.0
PATTERN_MAX: Final = 200


@dataclass(frozen=True)
class Standing:
    """A receiver and its queue."""

    receiver: Receiver
    queue: Queue


class AlertDesk:
    """From any thread, of any controller: what is ordered here the one that leads obeys at its next look."""

    def __init__(
        self,
        alerts: AlertStore,
        objectives: ObjectiveStore,
        receivers: ReceiverStore,
        teller: Teller,
        mails: Mails,
        *,
        fleet: str,
        clock: Callable[[], float],
    ) -> None:
        self.alerts = alerts
        self.objectives = objectives
        self._receivers = receivers
        self._teller = teller
        self._mails = mails
        self._fleet = fleet
        self._clock = clock

    # -- silences ------------------------------------------------------------------------------------------------------

    def silence(self, rule: str, subject: str, length_s: float, reason: str, begins_at: float | None = None) -> Silence:
        """Add one. Raises WireError: it fits nothing, or everything for ever; Conflict."""
        if len(rule) > PATTERN_MAX or len(subject) > PATTERN_MAX:
            raise WireError(f"a pattern of more than {PATTERN_MAX} characters; end it with *")
        if rule and not rule.endswith("*") and rule not in RULES:
            raise WireError(f"there is no rule {rule!r}; there are {', '.join(sorted(RULES))}")
        if not 0 < length_s <= SILENCE_S_MAX:
            raise WireError("a silence lasts 30 days at most; what is not to be told for longer needs another receiver")
        now = self._clock()
        start = now if begins_at is None else begins_at
        if not now - 60 <= start <= now + SILENCE_S_MAX:
            raise WireError("a silence begins now, or within 30 days")
        silence = Silence(secrets.token_hex(6), rule, subject, start, start + length_s, acting().actor, reason)
        self.alerts.silence(silence)
        return silence

    # -- objectives ----------------------------------------------------------------------------------------------------

    def set_objective(self, name: str, model: str, indicator: Indicator, target: float, device_class: str) -> None:
        """Raises WireError: no names, or a target that cannot be kept; Conflict."""
        ids.name(name, "objective")
        ids.name(model, "model")
        if device_class:
            ids.name(device_class, "device class")
        self.objectives.set(Objective(name, model, indicator, target, device_class))

    def burn(self, objective: Objective) -> Burn:
        """Return how an objective stands."""
        return assess(objective, lambda window_s: self.objectives.requests(objective, window_s))

    # -- receivers -----------------------------------------------------------------------------------------------------

    def receivers(self) -> list[Standing]:
        queues = self._receivers.queues()
        return [Standing(each, queues.get(each.name, Queue())) for each in self._receivers.receivers()]

    def add_receiver(
        self,
        name: str,
        kind: Kind,
        address: str,
        severities: Iterable[Severity] = (),
        *,
        reviews: bool = False,
        login: Login | None = None,
    ) -> Receiver:
        """Add one, and return it; the secret of a webhook is told this once.

        Args:
            login: at the broker of an MQTT receiver.
        Raises:
            ReceiverInvalid, WireError: an address or a name that cannot be used.
            Conflict: there is one of this name.
        """
        secret = ""
        if login is not None and login != Login() and kind is not Kind.MQTT:
            raise ReceiverInvalid("a password, roots and a client certificate are for MQTT receivers alone")
        match kind:
            case Kind.WEBHOOK:
                check_url(address)
                secret = new_secret()
            case Kind.MQTT:
                secret = check_target(address, login or Login())
            case Kind.EMAIL:
                check_address(address)
                if not self._mails.is_configured:
                    raise ReceiverInvalid("there is no mail server; start the controller with --smtp-url")
        receiver = Receiver(
            name=ids.name(name, "receiver"),
            kind=kind,
            address=address,
            severities=tuple(sorted(set(severities), key=lambda each: each.rank)),
            reviews=reviews,
            secret=secret,
            created_at=self._clock(),
            created_by=acting().actor,
        )
        self._receivers.add(receiver)
        return receiver

    def remove_receiver(self, name: str) -> None:
        """Raises NotFound."""
        self._receivers.remove(name)

    def test_receiver(self, name: str) -> None:
        """Tell it that this is a test, at once. Raises NotFound, TellingFailed."""
        receiver, now = self._receivers.receiver(name), self._clock()
        text = f"This is a test that {acting().actor} asked for. Alerts of fleet {self._fleet} come here."
        said = body("receiver.test", f"[{self._fleet}] test", text, {"fleet": self._fleet, "receiver": name}, now)
        try:
            self._teller.try_now(receiver, secrets.token_hex(12), said)
        except TellingFailed as error:
            self._receivers.tried(name, error.said)
            raise
        self._receivers.tried(name, "told")
