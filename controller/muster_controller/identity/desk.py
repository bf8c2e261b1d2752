"""Everything of identity that runs in a controller, put together: the CA, enrolment, the device port, and what keeps
them in step. `server` makes one, starts it and stops it; the API's routes ask it."""

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256

import msgspec
import structlog

from muster_controller.broker.security import BrokerSecurity
from muster_controller.config import ServerConfig
from muster_controller.db.agreement_store import AgreementStore
from muster_controller.db.identity_store import IdentityStore
from muster_controller.db.side import SideDatabase
from muster_controller.identity.access import AccessThread, Gatekeeper
from muster_controller.identity.agreement import Disagreement, Own
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.device_port import DevicePort, listen
from muster_controller.identity.enrolment import Cut
from muster_controller.identity.labels import GrantedLabels
from muster_controller.identity.mixers import Mixers
from muster_controller.identity.service import EnrolmentService, Reached
from muster_controller.registry.errors import RegistryError
from muster_shared.errors import MusterError
from muster_shared.ids import FleetId, Sha256

ANY = ("0.0.0.0", "::", "")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

log = structlog.get_logger()


class _Signed(msgspec.Struct):
    version: int


class _Root(msgspec.Struct):
    signed: _Signed


_root = msgspec.json.Decoder(_Root)


class IdentityDesk:
    """One for each controller. Everything but `start` and `stop` is safe from any thread."""

    def __init__(
        self,
        config: ServerConfig,
        fleet: FleetId,
        side: SideDatabase,
        trust_root: Callable[[], bytes],
        clock: Callable[[], float],
        online_keys: Callable[[], bytes],
    ) -> None:
        """Make the CA or open it, write what a broker needs to start, and take the device port.

        Args:
            trust_root: the newest TUF root; empty where there is none yet.
            online_keys: the public halves of the controller's keys.
        Raises:
            Disagreement: other controllers of the database have another CA or other keys.
            IdentityError: the CA cannot be used.
            LedgerError: the database is away.
            ServerUnavailable: the device port is taken.
        """
        self._config = config
        self._broker_url = ""
        self._stack = ExitStack()
        ca = FleetCa(config.data, fleet, clock())
        store = IdentityStore(side)
        self.labels = GrantedLabels(store)
        """What operators gave to devices."""
        self._agreements = AgreementStore(side, clock)
        self._online_keys, self._trust_root = online_keys, trust_root
        self._cut: Sequence[Cut] = ()
        self._is_apart = False
        self._had: dict[str, frozenset[str]] = {}
        self.enrolment = EnrolmentService(ca, store, clock, self._reached, trust_root, self._woken)
        if config.database is not None:  # A file of this folder's own belongs to it.
            self._agree(adopt=config.adopt_keys)
        self.mixers = Mixers(ca, store, clock, self._reached, self._woken)
        self._access = AccessThread(ca, self.enrolment, names_of(config), clock, self._rest)
        self._access.prepare()
        self._port = DevicePort(
            listen(config.device_host, config.device_port),
            ca.paths.server,
            self.enrolment.answer,
            lambda: ca.root_pem,
            clock,
        )
        self._stack.callback(self._port.stop)
        self._access.add(self._port)

    @property
    def device_url(self) -> str:
        """Where devices enrol and renew."""
        return f"https://{_bracketed(public_host(self._config))}:{self._port.port}"

    @property
    def security(self) -> BrokerSecurity:
        """What the embedded broker is told."""
        paths = self.enrolment.ca.paths
        return BrokerSecurity(
            fleet=self.enrolment.ca.fleet,
            ca=paths.clients,
            certificate=paths.server,
            key=paths.server,
            client_certificate=paths.controller,
            client_key=paths.controller,
            devices=self.enrolment.admitted,
            revoked=self.enrolment.barred,
            crl=paths.crl,
            host=self._config.device_host,
            mixers=self.enrolment.mixers,
        )

    def watch(self, keeper: Gatekeeper) -> None:
        """Tell `keeper` who may come, from `start` on."""
        self._access.add(keeper)

    def start(self, broker_url: str) -> None:
        """Open the device port. `broker_url` is where devices find the broker. Raises ServerUnavailable."""
        self._broker_url = broker_url
        self._access.start()
        self._stack.callback(self._access.stop)
        self._port.start()

    def stop(self) -> None:
        """Close the device port and end. Doing it twice is harmless."""
        self._stack.close()

    def settled(self, timeout_s: float) -> bool:
        """Return whether what was ordered before this call has reached the broker within `timeout_s`."""
        return self._access.wait_settled(timeout_s)

    def client_word(self, made: Callable[[], None]) -> str:
        """Return what is in the client id of all controllers of the database, and nobody can guess.

        Args:
            made: called when it is made, which is once for a database.
        """

        def make() -> str:
            made()
            return secrets.token_hex(8)

        return self._agreements.client_word(make)

    @property
    def cut(self) -> Sequence[Cut]:
        """Who could speak once and cannot any more, as of the last look: within a minute of any other controller's."""
        return self._cut

    def look_who_is_cut(self) -> None:
        """Have `cut` say it as of now. Raises LedgerError."""
        self._cut = tuple(self.enrolment.cut())

    def _rest(self) -> None:
        self.labels.refresh()
        self.look_who_is_cut()
        if self._config.database is None:
            return
        apart: MusterError | None = None
        try:
            self._agree()
        except (Disagreement, RegistryError) as error:  # It was right at the start; keys were replaced since.
            apart = error
        if apart is not None and not self._is_apart:
            log.error("keys_differ", error=str(apart))
        self._is_apart = apart is not None

    def _agree(self, *, adopt: bool = False) -> None:
        keys = Sha256(sha256(self._online_keys()).hexdigest())
        found = (*self.enrolment.ca.has_in_common, Own("online-keys", "keys", keys, root_version(self._trust_root())))
        # What is replaced while we run, and perhaps read half-way, succeeds what we had.
        own = [replace(each, former=each.former | self._had.get(each.name, frozenset())) for each in found]
        changed = self._agreements.agree(own, adopt=adopt)
        self._had = {each.name: each.former | {each.value} for each in own}
        for name in changed:
            log.warning("keys_changed", what=name, remedy="other controllers of the database need them too")

    def _reached(self) -> Reached:
        return Reached(self._broker_url, self.device_url)

    def _woken(self) -> None:
        self._access.wake()


def root_version(root: bytes) -> int:
    """Return the version of a TUF root; 0: there is none."""
    return _root.decode(root).signed.version if root else 0


def public_host(config: ServerConfig) -> str:
    """Return under which name or address devices reach this machine."""
    if config.device_names:
        return config.device_names[0]
    return socket.gethostname().lower() if config.device_host in ANY else config.device_host


def names_of(config: ServerConfig) -> Sequence[str]:
    """Return what stands in the server's certificate."""
    host = () if config.device_host in ANY else (config.device_host,)
    return tuple(dict.fromkeys((*LOCAL_NAMES, public_host(config), *host, *config.device_names)))


def broker_url_for_devices(config: ServerConfig, port: int) -> str:
    """Return where devices find the embedded broker that listens on `port` with TLS."""
    return f"mqtts://{_bracketed(public_host(config))}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
