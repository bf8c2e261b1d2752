"""The agent's configuration: `agent.toml`, read once, checked, and passed down. It detects nothing.

    fleet = "harbour"
    device = "crane-07"
    device_class = "x86-cpu"
    data_dir = "/var/lib/muster-agent"

That is enough for a device that is enrolled: where the broker is, what it is trusted by, and the TUF root came with its
certificate. Without one, `broker_url` and `bootstrap_root` say it (and `[tls]`); set beside one, they go before it.
The variables in `ENVIRONMENT`, such as `MUSTER_AGENT_DEVICE`, win over the file.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from muster_agent.calls.config import CallsConfig
from muster_agent.consent.config import ConsentConfig
from muster_agent.consent.config import problem as consent_problem
from muster_agent.consent.local_time import zone_of
from muster_agent.errors import ConfigInvalid, IdentityDamaged, KeyUnusable
from muster_agent.identity.folder import IdentityFolder
from muster_agent.identity.key_uri import FILE, parse_key
from muster_agent.metrics.config import MetricsConfig
from muster_agent.metrics.config import problem as metrics_problem
from muster_agent.metrics.windows import Place
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.config import problem as serving_problem
from muster_shared import ids
from muster_shared.bundle import Runtime
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId
from muster_shared.link import BrokerAddress, BrokerUrlInvalid, parse_broker_url
from muster_shared.metrics import REGION_LABEL

ENVIRONMENT = {
    "MUSTER_AGENT_FLEET": ("fleet",),
    "MUSTER_AGENT_DEVICE": ("device",),
    "MUSTER_AGENT_DEVICE_CLASS": ("device_class",),
    "MUSTER_AGENT_BROKER_URL": ("broker_url",),
    "MUSTER_AGENT_DATA_DIR": ("data_dir",),
    "MUSTER_AGENT_BOOTSTRAP_ROOT": ("bootstrap_root",),
    "MUSTER_AGENT_HTTP_LISTEN": ("http", "listen"),
    "MUSTER_AGENT_IDENTITY_KEY": ("identity", "key"),
}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
THREADS_MAX = 256
TWIN_EVERY_S_MIN = 1.0
OUTBOX_EVENTS_MIN = 100


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where local applications ask: the loopback, unless `allow_remote` says otherwise and callers need tokens."""

    listen: str = "127.0.0.1:8000"
    """host:port; port 0 takes a free one; empty: no TCP."""
    unix_socket: Path | None = None
    allow_remote: bool = False

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; only for a checked configuration."""
        return _host_and_port(self.listen) if self.listen else None


class GrpcConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same protocol over gRPC; needs the extra `grpc`."""

    listen: str = ""
    """host:port; port 0 takes a free one; empty: no gRPC."""
    allow_remote: bool = False

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; only for a checked configuration."""
        return _host_and_port(self.listen) if self.listen else None


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files for a broker at mqtts://."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class IdentityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the device is. What it was granted stands in the folder, and is not repeated here."""

    folder: Path | None = None
    """None: `identity` in the data folder."""
    key: str = FILE
    """`file`, or a PKCS#11 URI: pkcs11:token=...;object=...?module-path=/usr/lib/...&pin-source=file:/etc/..."""
    device_url: str = ""
    """Where to enrol, https://host:8443; empty: `enrol --controller` says it. Renewals go where the grant says."""


class HardwareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device is declared to be instead of what is detected, for labs and demos."""

    arch: str | None = None
    accelerators: tuple[str, ...] | None = None
    cpu_count: int | None = None
    memory_mb: int | None = None
    ask_openvino: bool = False
    """Look for accelerators through OpenVINO at the start (a second or two)."""


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`agent.toml`."""

    fleet: FleetId
    device: DeviceId
    device_class: str
    data_dir: Path
    broker_url: str = ""
    """Empty: where the controller said at enrolment."""
    bootstrap_root: Path | None = None
    """The first TUF root, as it was handed over with the device; None: as it came with the first certificate."""
    labels: dict[str, str] = {}
    """What it says of itself: the controller knows what operators gave it, and may take that back at any time."""
    granted_labels: dict[str, str] = {}
    """What operators gave it, as of its certificate; never in the file."""
    timezone: str | None = None
    """Of its maintenance windows: an IANA name or an offset such as +02:00; None: the host's."""
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "openvino")
    """The engines that may be used, of those installed."""
    threads: int | None = None
    """For one inference; None: all processors that the agent may use."""
    twin_every_s: float = 60.0
    outbox_events_max: int = 10_000
    http: HttpConfig = HttpConfig()
    grpc: GrpcConfig = GrpcConfig()
    serving: ServingConfig = ServingConfig()
    tls: TlsConfig = TlsConfig()
    identity: IdentityConfig = IdentityConfig()
    hardware: HardwareConfig = HardwareConfig()
    consent: ConsentConfig = ConsentConfig()
    metrics: MetricsConfig = MetricsConfig()
    calls: CallsConfig = CallsConfig()

    @property
    def broker(self) -> BrokerAddress:
        """Only for a checked configuration."""
        return parse_broker_url(self.broker_url)

    @property
    def metrics_place(self) -> Place:
        """What its windows say of the device: its class, and the region that the fleet granted, if it is a name."""
        region = (self.labels | self.granted_labels).get(REGION_LABEL, "")
        try:
            return Place(self.device_class, ids.name(region, "region"))
        except WireError:
            return Place(self.device_class)

    @property
    def identity_folder(self) -> IdentityFolder:
        return IdentityFolder(self.identity.folder or self.data_dir / "identity")


def load_config(path: Path, environment: Mapping[str, str]) -> AgentConfig:
    """Return the configuration in the file `path`, with what `environment` overrides and what the device was granted.

    Raises:
        ConfigInvalid: it cannot be read, the message names the line or field that is wrong, or the device is not
            enrolled and nothing else says where its broker is.
    """
    return with_grant(read_config(path, environment), path)


def read_config(path: Path, environment: Mapping[str, str]) -> AgentConfig:
    """Return the configuration as it is written; the device need not be enrolled yet. Raises ConfigInvalid."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}; name another with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: {error}") from error
    for variable, (*tables, field) in ENVIRONMENT.items():
        if variable in environment:
            table = document
            for name in tables:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise ConfigInvalid(f"{path}: {name} is a table, written [{name}]")
            table[field] = environment[variable]
    try:
        config = msgspec.convert(document, AgentConfig, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{path}: {_in_toml_words(str(error))}") from error
    problem = "granted_labels are the controller's; write [labels]" if config.granted_labels else _problem(config)
    if problem is not None:
        raise ConfigInvalid(f"{path}: {problem}")
    return config


def with_grant(config: AgentConfig, path: Path) -> AgentConfig:
    """Return `config` (of the file `path`) with what the controller granted where the file says nothing.

    Raises:
        ConfigInvalid: the grant is another device's or damaged, or there is none and it is needed.
    """
    folder = config.identity_folder
    try:
        enrolled = folder.current()
    except IdentityDamaged as error:
        raise ConfigInvalid(str(error)) from error
    if enrolled is None:
        if config.broker_url and config.bootstrap_root is not None:
            return config
        raise ConfigInvalid(
            f"{path}: this device is not enrolled; run `muster-agent enrol --controller https://HOST:8443 --token -`, "
            "or set broker_url and bootstrap_root"
        )
    if (enrolled.fleet, enrolled.device) != (config.fleet, config.device):
        raise ConfigInvalid(
            f"{path}: the certificate in {folder.path} is of {enrolled.device} in fleet {enrolled.fleet}; correct "
            "fleet and device, or enrol again"
        )
    root = config.bootstrap_root or folder.root_path
    if config.bootstrap_root is None and not root.exists():
        raise ConfigInvalid(
            f"{path}: the controller had no trust root yet when this device was granted its certificate; run "
            "`muster init` and `muster trust push` there, then `muster-agent renew` here, or set bootstrap_root"
        )
    by_hand = config.tls.ca is not None or config.tls.cert is not None
    granted = TlsConfig(ca=folder.ca_path, cert=folder.certificate_path, key=folder.session_key_path)
    return msgspec.structs.replace(
        config,
        broker_url=config.broker_url or enrolled.broker_url,
        bootstrap_root=root,
        tls=config.tls if by_hand else granted,
        granted_labels=enrolled.labels,
    )


def _path(kind: type, text: object) -> object:
    if kind is Path and isinstance(text, str) and text:
        return Path(text)
    raise ValueError(f"Expected a path, got {text!r}")


def _in_toml_words(message: str) -> str:
    """`... - at `$.http.listen`` names the field as the file does."""
    return message.replace("`$.", "`").replace("Object", "The file").replace("`$`", "the top level")


def _problem(config: AgentConfig) -> str | None:
    """Return what is wrong with `config`, the first thing, by field."""
    try:
        ids.name(config.fleet, "fleet")
        ids.name(config.device, "device")
        ids.name(config.device_class, "device_class")
        if config.broker_url:
            parse_broker_url(config.broker_url)
        parse_key(config.identity.key)
    except KeyUnusable as error:
        return f"identity.key: {error}"
    except WireError as error:
        return str(error)
    except BrokerUrlInvalid as error:
        return f"broker_url: {error}"
    if not config.runtimes:
        return "runtimes: name at least one engine"
    if config.threads is not None and not 1 <= config.threads <= THREADS_MAX:
        return f"threads: {config.threads} is not from 1 to {THREADS_MAX}"
    if config.twin_every_s < TWIN_EVERY_S_MIN:
        return f"twin_every_s: {config.twin_every_s:g} is less than {TWIN_EVERY_S_MIN:g} s"
    if config.outbox_events_max < OUTBOX_EVENTS_MIN:
        return f"outbox_events_max: {config.outbox_events_max} is less than {OUTBOX_EVENTS_MIN}"
    if (config.tls.cert is None) != (config.tls.key is None):
        return "tls: cert and key come together"
    if config.timezone is not None:
        try:
            zone_of(config.timezone)
        except ValueError as error:
            return f"timezone: {error}"
    if not config.http.listen and config.http.unix_socket is None:
        return "http: neither listen nor unix_socket is set"
    tokens = config.serving.require_token
    return (
        _listen_problem("http", config.http, tokens)
        or _listen_problem("grpc", config.grpc, tokens)
        or serving_problem(config.serving)
        or consent_problem(config.consent)
        or metrics_problem(config.metrics)
    )


def _listen_problem(table: str, front: HttpConfig | GrpcConfig, tokens: bool) -> str | None:
    if not front.listen:
        return None
    host, _, port = front.listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        return f"{table}.listen: {front.listen!r} is not host:port"
    if host.strip("[]") not in LOOPBACK and not (front.allow_remote and tokens):
        return (
            f"{table}.listen: {host} is not the loopback; to serve other hosts set {table}.allow_remote = true, and "
            "serving.require_token = true with a token for each client"
        )
    return None


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
