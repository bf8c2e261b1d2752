"""Logins of the command line: `~/.config/muster/credentials.json`, 0600, a token for each controller's URL."""

import os
from pathlib import Path

import msgspec

from muster_controller.registry import durable
from muster_shared.errors import MusterError

FILE_BYTES_MAX = 1024 * 1024


class LoginsUnreadable(MusterError):
    pass


class Login(msgspec.Struct, frozen=True):
    token: str
    id: str
    operator: str
    expires_at: float

    def __repr__(self) -> str:
        return f"Login({self.operator!r})"


def path() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "muster" / "credentials.json"


def read() -> dict[str, Login]:
    """Return the logins by URL. Raises LoginsUnreadable: also where others could read the file."""
    where = path()
    try:
        with where.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise LoginsUnreadable(f"{where} can be read by others; `chmod 600 {where}`, and log in anew")
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=dict[str, Login])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise LoginsUnreadable(f"{where} cannot be read ({error}); delete it, and `muster login` again") from error


def keep(url: str, login: Login) -> None:
    """Raises LoginsUnreadable, OSError."""
    _write({**read(), url.rstrip("/"): login})


def find(url: str) -> Login | None:
    """Raises LoginsUnreadable."""
    return read().get(url.rstrip("/"))


def forget(url: str) -> bool:
    """Forget the login at `url`; return whether there was one. Raises LoginsUnreadable, OSError."""
    found = read()
    if found.pop(url.rstrip("/"), None) is None:
        return False
    _write(found)
    return True


def _write(logins: dict[str, Login]) -> None:
    where = path()
    durable.make_folder(where.parent, 0o700)
    durable.write(where, msgspec.json.format(msgspec.json.encode(logins), indent=1), 0o600)
