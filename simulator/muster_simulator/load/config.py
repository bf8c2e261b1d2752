"""`load.json`: how many devices, of which hardware, on which broker. Read once."""

from pathlib import Path

import msgspec

from muster_shared import ids
from muster_shared.errors import MusterError, WireError
from muster_shared.ids import DeviceId, FleetId, ModelName
from muster_shared.link import BrokerUrlInvalid, parse_broker_url
from muster_shared.messages import Hardware

COUNT_MAX = 500  # A thread each; more devices take more processes.


class LoadConfigInvalid(MusterError):
    """A load configuration that does not say what it must."""


class LoadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths are relative to the working folder."""

    fleet: FleetId
    broker_url: str
    bootstrap_root: Path
    truth_dir: Path
    work_dir: Path
    count: int
    classes: tuple[Hardware, ...]
    """Devices take these in turn, so that each class has as many."""
    name_prefix: str = "sim"
    seed: int = 0
    requests_per_s: dict[ModelName, float] = {}
    """By model; those not named get `requests_per_s_other`."""
    requests_per_s_other: float = 20.0
    twin_every_s: float = 10.0
    identities: Path | None = None
    """A folder for each device, as `muster-agent enrol` leaves it; None: the broker asks for no certificate."""
    metrics_clock_speed: float = 1.0
    """As `metrics.clock_speed` of the agents; so the next."""
    metrics_clock_since: float = 0.0
    status_file: Path | None = None
    """Written anew every second, as one JSON line."""

    def devices(self) -> dict[DeviceId, Hardware]:
        """Return the hardware of each device."""
        digits = len(str(self.count))
        return {
            DeviceId(f"{self.name_prefix}-{number + 1:0{digits}d}"): self.classes[number % len(self.classes)]
            for number in range(self.count)
        }


def load_config(path: Path) -> LoadConfig:
    """Return the configuration in `path`. Raises LoadConfigInvalid."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=LoadConfig, dec_hook=_from_text)
    except (OSError, msgspec.MsgspecError) as error:
        raise LoadConfigInvalid(f"{path}: {error}") from error
    if not 1 <= config.count <= COUNT_MAX or not config.classes:
        raise LoadConfigInvalid(f"{path}: count is from 1 to {COUNT_MAX}, and there is at least one class")
    try:
        ids.name(config.fleet, "fleet")
        ids.name(config.name_prefix, "name_prefix")
        parse_broker_url(config.broker_url)
    except (WireError, BrokerUrlInvalid) as error:
        raise LoadConfigInvalid(f"{path}: {error}") from error
    return config


def _from_text(kind: type, value: object) -> object:
    """Paths are text in JSON."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is not known to the configuration")
