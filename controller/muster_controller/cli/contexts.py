"""Contexts of the command line: `~/.config/muster/config.json`, 0600: controllers by name, and the chosen one.

Tokens are not here: `logins` keeps them by URL, in a file of their own.

    --url, --context  >  MUSTER_URL  >  MUSTER_CONTEXT  >  the chosen context  >  ./muster-data  >  port 8080 here
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from muster_controller.registry import durable
from muster_shared.errors import MusterError

CONTEXT_VARIABLE = "MUSTER_CONTEXT"
FILE_BYTES_MAX = 1024 * 1024
CONTEXTS_MAX = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class ContextsUnreadable(MusterError):
    pass


class ContextUnknown(MusterError):
    pass


class ContextInvalid(MusterError):
    pass


class Context(msgspec.Struct, frozen=True):
    """One controller."""

    url: str
    ca: str | None = None
    """PEM file of the CA of its certificate; None: those that this machine trusts."""


class Contexts(msgspec.Struct, frozen=True):
    """The whole file."""

    current: str | None = None
    contexts: dict[str, Context] = msgspec.field(default_factory=dict)

    def named(self, name: str) -> Context:
        """Raises ContextUnknown."""
        found = self.contexts.get(name)
        if found is None:
            known = ", ".join(sorted(self.contexts)) or "none is known yet"
            raise ContextUnknown(
                f"no context is called {name!r} ({known}); make it with `muster context set {name} --url …`"
            )
        return found

    def using(self, name: str | None) -> "Contexts":
        """Return them with `name` chosen, or none. Raises ContextUnknown."""
        if name is not None:
            self.named(name)
        return msgspec.structs.replace(self, current=name)

    def having(self, name: str, context: Context) -> "Contexts":
        """Return them with this one made or changed; the first one is chosen. Raises ContextInvalid."""
        if not _NAME.fullmatch(name):
            raise ContextInvalid(
                f"{name!r} is no name of a context: 1 to 63 of letters, digits, dot, dash and underline"
            )
        if urlsplit(context.url).scheme not in ("http", "https") or not urlsplit(context.url).hostname:
            raise ContextInvalid(f"{context.url!r} is no URL of a controller; give one such as https://muster.example")
        if name not in self.contexts and len(self.contexts) >= CONTEXTS_MAX:
            raise ContextInvalid(f"there are {CONTEXTS_MAX} contexts; remove one first")
        return Contexts(self.current if self.contexts else name, {**self.contexts, name: context})

    def without(self, name: str) -> "Contexts":
        """Raises ContextUnknown."""
        self.named(name)
        rest = {each: context for each, context in self.contexts.items() if each != name}
        return Contexts(None if self.current == name else self.current, rest)

    def renamed(self, name: str, to: str) -> "Contexts":
        """Raises ContextUnknown, ContextInvalid."""
        found = self.named(name)
        if to in self.contexts:
            raise ContextInvalid(f"there is a context {to!r} already; remove it first")
        return msgspec.structs.replace(
            self.without(name).having(to, found), current=to if self.current == name else self.current
        )


@dataclass(frozen=True)
class Said:
    """What says which controller is meant, each None where it is not said."""

    url: str | None = None
    """By --url."""
    context: str | None = None
    """By --context."""
    ca: Path | None = None
    """By --ca or MUSTER_CA."""
    env_url: str | None = None
    env_context: str | None = None


@dataclass(frozen=True)
class Chosen:
    """The controller that is meant; without `url`, it is the one that runs in ./muster-data, else on port 8080."""

    url: str | None
    ca: Path | None
    context: str | None = None
    """Its name, where a context said so."""


def choose(said: Said, known: Contexts) -> Chosen:
    """Return which controller is meant, by the order at the top. Raises ContextUnknown, ContextInvalid."""
    if said.url and said.context:
        raise ContextInvalid("--url and --context both name a controller; give one of them")
    if said.url:
        return Chosen(said.url, said.ca)
    if not said.context and said.env_url:
        return Chosen(said.env_url, said.ca)
    name = said.context or said.env_context or known.current
    if not name:
        return Chosen(None, said.ca)
    found = known.named(name)
    return Chosen(found.url, said.ca or (Path(found.ca) if found.ca else None), name)


def path() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "muster" / "config.json"


def read() -> Contexts:
    """Raises ContextsUnreadable."""
    where = path()
    try:
        with where.open("rb") as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Contexts)
    except FileNotFoundError:
        return Contexts()
    except (OSError, msgspec.MsgspecError) as error:
        raise ContextsUnreadable(f"{where} cannot be read ({error}); mend or delete it") from error


def write(contexts: Contexts) -> None:
    """Raises OSError."""
    where = path()
    durable.make_folder(where.parent, 0o700)
    durable.write(where, msgspec.json.format(msgspec.json.encode(contexts), indent=1), 0o600)
