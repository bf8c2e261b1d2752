"""Where an installation is, and the record of it that `uninstall`, `doctor` and `upgrade` go by.

    /etc/muster-agent/          agent.toml  install.json         ~/.config/muster-agent
    /var/lib/muster-agent/      identity, models, trust          ~/.local/share/muster-agent/data
    /opt/muster-agent/          current ──▶ the environment      ~/.local/share/muster-agent/program
                                versions/1.4.0/                  that `upgrade` made

The record is in the configuration's folder: what root does by it, the agent's user must not be able to write.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec

from muster_agent.io import durable
from muster_shared.errors import MusterError

SupervisorKind = Literal["systemd", "own", "none"]
UNIT = "muster-agent.service"
CONFIG_NAME = "agent.toml"
RECORD_NAME = "install.json"
PROGRAM = Path("bin", "muster-agent")
RECORD_BYTES_MAX = 64 * 1024


class InstallError(MusterError):
    """Something about the installation cannot be done; the message says what to do."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """An installation, also as `install.json`."""

    v: int = 1
    is_user: bool
    config: Path
    data_dir: Path
    program_dir: Path
    unit: Path
    """Of systemd, whether it is used or not."""
    supervisor: SupervisorKind = "none"

    @property
    def record(self) -> Path:
        return self.config.with_name(RECORD_NAME)

    @property
    def current(self) -> Path:
        """The link to the environment that runs."""
        return self.program_dir / "current"

    @property
    def program(self) -> Path:
        """`muster-agent` of the environment that runs. Its first line names that environment's real path, so that a
        process which started before the link was moved goes on importing its own files."""
        return self.current / PROGRAM

    @property
    def supervisor_dir(self) -> Path:
        return self.data_dir / "supervisor"


def default_places(*, is_user: bool, home: Path) -> Places:
    if not is_user:
        return Places(
            is_user=False,
            config=Path("/etc/muster-agent", CONFIG_NAME),
            data_dir=Path("/var/lib/muster-agent"),
            program_dir=Path("/opt/muster-agent"),
            unit=Path("/etc/systemd/system", UNIT),
        )
    below = home / ".local/share/muster-agent"
    return Places(
        is_user=True,
        config=home / ".config/muster-agent" / CONFIG_NAME,
        data_dir=below / "data",
        program_dir=below / "program",
        unit=home / ".config/systemd/user" / UNIT,
    )


def own_places() -> Places:
    """Return where this user's installation belongs: root's is the system's."""
    return default_places(is_user=os.geteuid() != 0, home=Path.home())


def find_config(given: Path) -> Path:
    """Return the configuration that is meant: the user's own where `given` is the system's, and that has none."""
    system, own = default_places(is_user=False, home=Path("/")).config, own_places().config
    return own if given == system and not system.exists() and own.exists() else given.absolute()


def load(config: Path) -> Places | None:
    """Return the record beside `config`; None: `install` never ran there.

    Raises:
        InstallError: it cannot be read, or does not parse.
    """
    path = config.with_name(RECORD_NAME)
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(RECORD_BYTES_MAX), type=Places, dec_hook=_path)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise InstallError(f"{path} cannot be read ({error}); run `muster-agent install` again") from error


def save(places: Places) -> None:
    """Write the record, durably. Raises OSError."""
    places.record.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(places.record, msgspec.json.format(msgspec.json.encode(places, enc_hook=str)) + b"\n")


def point(link: Path, target: Path) -> None:
    """Let `link` lead to `target`, durably and at once for every reader. Raises OSError."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target, target_is_directory=True)
    fresh.replace(link)
    durable.sync(link.parent)


def _path(kind: type, text: object) -> object:
    if kind is Path and isinstance(text, str) and text.startswith("/"):
        return Path(text)
    raise ValueError(f"Expected an absolute path, got {text!r}")
