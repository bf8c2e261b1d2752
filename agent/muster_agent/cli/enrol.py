"""`muster-agent enrol`, `identity`, `renew`: how a device becomes one of a fleet, and who it is then.

The token is a secret: it is taken from standard input or MUSTER_ENROL_TOKEN too, since arguments are for everybody to
read. What is installed around it (service, user) is `install`'s.
"""

import argparse
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from muster_agent import __version__
from muster_agent.cli.exits import FAILED, UNREACHABLE, USAGE, WAITING, CommandFailed
from muster_agent.config import AgentConfig, read_config
from muster_agent.errors import (
    ConfigInvalid,
    ControllerUntrusted,
    EnrolmentRefused,
    EnrolmentUnreachable,
    IdentityError,
    KeyUnusable,
)
from muster_agent.identity import key_uri
from muster_agent.identity.folder import Enrolled, IdentityFolder
from muster_shared import ids
from muster_shared.enrolment import EnrolmentToken, Waiting, parse_token
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId

TOKEN_VARIABLE = "MUSTER_ENROL_TOKEN"
TOKEN_BYTES_MAX = 1024
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A device that is to be enrolled."""

    controller_url: str
    device: DeviceId
    device_class: str
    data_dir: Path
    folder: Path
    key: str = key_uri.FILE
    fleet: FleetId | None = None
    """None: the token's."""
    labels: dict[str, str] = {}
    serial: str = ""


def enrol(options: argparse.Namespace) -> None:
    """The command."""
    with_config = options.config.exists()
    plan = _plan(options, _config(options.config) if with_config else None)
    enrolled = carry_out(plan, token_of(options.token), wait_s=options.wait)
    if not with_config:
        write_config(options.config, plan, enrolled)
    if options.json:
        print(
            json.dumps({"state": "granted", **_facts(enrolled, plan.folder), "config": str(options.config)}, indent=2)
        )
        return
    print(f"{enrolled.device} is enrolled in fleet {enrolled.fleet}")
    _show(enrolled, plan.folder, key_uri.kind(plan.key))
    if not with_config:
        print(f"wrote {options.config}")
    if not IdentityFolder(plan.folder).root():
        print("the controller has no trust root yet: once it has, run `muster-agent renew`, then start the agent")


def identity(options: argparse.Namespace) -> None:
    """The command."""
    config = _config(options.config)
    folder = config.identity_folder
    try:
        enrolled = folder.current()
    except IdentityError as error:
        raise CommandFailed(FAILED, str(error)) from error
    if enrolled is None:
        raise CommandFailed(FAILED, f"{folder.path} holds no certificate; run `muster-agent enrol` with a token")
    kind = key_uri.kind(config.identity.key)
    if options.json:
        print(json.dumps({"key": kind, **_facts(enrolled, folder.path)}, indent=2))
        return
    print(f"device       {enrolled.device}\nfleet        {enrolled.fleet}")
    _show(enrolled, folder.path, kind)


def renew(options: argparse.Namespace) -> None:
    """The command. A running agent takes the new certificate over within a minute."""
    from muster_agent.identity import client
    from muster_agent.identity.keys import open_key

    config = _config(options.config)
    folder = config.identity_folder
    try:
        answer = client.renew(folder, open_key(config.identity.key, folder, make=False), agent_version=__version__)
    except IdentityError as error:
        raise _failed(error) from error
    if isinstance(answer, Waiting):
        raise CommandFailed(WAITING, f"the controller has not accepted this device: {answer.reason}")
    if options.json:
        print(json.dumps({"state": "granted", **_facts(answer, folder.path)}, indent=2))
    else:
        _show(answer, folder.path, key_uri.kind(config.identity.key))


def carry_out(plan: Plan, token: EnrolmentToken, *, wait_s: float) -> Enrolled:
    """Make the identity key if there is none, and ask until the device is accepted or `wait_s` seconds are over.

    Raises:
        CommandFailed: why there is no certificate, and what to do.
    """
    from muster_agent.identity import client
    from muster_agent.identity.certificates import identity_fingerprint
    from muster_agent.identity.keys import open_key

    folder = IdentityFolder(plan.folder)
    until = time.monotonic() + wait_s
    is_told = False
    try:
        folder.make()
        key = open_key(plan.key, folder, make=True)
        whose = f"compare its key there: {identity_fingerprint(key.public_pem())}"
        while True:
            answer = client.enrol(
                folder,
                key,
                controller_url=plan.controller_url,
                token=token,
                device=plan.device,
                fleet=plan.fleet,
                labels=plan.labels,
                serial=plan.serial,
                device_class=plan.device_class,
                agent_version=__version__,
            )
            if isinstance(answer, Enrolled):
                return answer
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            if not is_told:
                is_told = True
                print(f"waiting: {answer.reason}; {whose}", file=sys.stderr)
            time.sleep(min(left_s, max(RETRY_S_MIN, min(answer.retry_s, RETRY_S_MAX))))
    except IdentityError as error:
        raise _failed(error) from error
    except OSError as error:
        raise CommandFailed(
            USAGE, f"{plan.folder} cannot be made: {error.strerror}; name another --data-dir"
        ) from error
    raise CommandFailed(
        WAITING,
        f"somebody has to accept this device first ({answer.reason}; {whose}); run the same command again, or with "
        "--wait S",
    )


def config_text(plan: Plan, enrolled: Enrolled) -> str:
    """Return an `agent.toml` that is enough for an enrolled device."""
    facts: dict[str, str] = {
        "fleet": enrolled.fleet,
        "device": enrolled.device,
        "device_class": plan.device_class,
        "data_dir": str(plan.data_dir),
    }
    lines = [f"{name} = {_toml(value)}" for name, value in facts.items()]
    if plan.labels:
        lines += ["", "[labels]", *(f"{_toml(name)} = {_toml(value)}" for name, value in sorted(plan.labels.items()))]
    if plan.key != key_uri.FILE:
        lines += ["", "[identity]", f"key = {_toml(plan.key)}"]
    return "\n".join(lines) + "\n"


def write_config(path: Path, plan: Plan, enrolled: Enrolled) -> None:
    """Write it where none is, readable for everybody: it has no secrets. Raises CommandFailed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(config_text(plan, enrolled))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CommandFailed(
            USAGE,
            f"the device is enrolled, but {path} cannot be written ({error.strerror}); name another with --config",
        ) from error


# -- what options mean -------------------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace, config: AgentConfig | None) -> Plan:
    url = options.controller or (config.identity.device_url if config is not None else "")
    if not url:
        raise CommandFailed(USAGE, "name the controller: --controller https://HOST:8443")
    data_dir = config.data_dir if config is not None else options.data_dir
    if config is not None and options.device not in (None, config.device):
        raise CommandFailed(USAGE, f"{options.config} says that this device is {config.device}; change it there")
    device = config.device if config is not None else (options.device or default_device())
    device_class = config.device_class if config is not None else (options.device_class or default_class())
    try:
        ids.name(device, "--device")
        ids.name(device_class, "--class")
    except WireError as error:
        raise CommandFailed(USAGE, str(error)) from error
    try:
        key = options.key or (config.identity.key if config is not None else key_uri.FILE)
        key_uri.parse_key(key)
    except KeyUnusable as error:
        raise CommandFailed(USAGE, f"--key: {error}") from error
    if config is not None and key != config.identity.key:
        raise CommandFailed(USAGE, f"{options.config} names another identity key; change it there")
    own = dict(config.labels) if config is not None else {}
    return Plan(
        controller_url=url,
        device=DeviceId(device),
        device_class=device_class,
        data_dir=data_dir,
        folder=config.identity_folder.path if config is not None else data_dir / "identity",
        key=key,
        fleet=None if config is None else config.fleet,
        labels=own | options.labels,
        serial=options.serial or hardware_serial(),
    )


def token_of(given: str | None) -> EnrolmentToken:
    """Return the token. Raises CommandFailed, which never repeats it."""
    text = given
    if given == "-":
        text = sys.stdin.readline(TOKEN_BYTES_MAX)
    elif given is None:
        text = os.environ.get(TOKEN_VARIABLE)
    if not text:
        raise CommandFailed(USAGE, f"no token: pipe it to `--token -`, or set {TOKEN_VARIABLE}")
    try:
        return parse_token(text.strip())
    except WireError as error:
        raise CommandFailed(USAGE, str(error)) from error


def default_device() -> str:
    """Return this host's name as a device id."""
    return _word(socket.gethostname().partition(".")[0])


def default_class() -> str:
    """Return a class for devices of this architecture without an accelerator."""
    return _word(f"{platform.machine()}-cpu")


def hardware_serial() -> str:
    """Return the serial number that the firmware tells, where it does and we may read it; else empty."""
    for path in ("/sys/firmware/devicetree/base/serial-number", "/sys/class/dmi/id/product_serial"):
        try:
            found = Path(path).read_bytes()[:128].strip(b"\0 \n").decode("ascii")
        except (OSError, UnicodeDecodeError):
            continue
        if found.isprintable():
            return found
    return ""


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64]


def _config(path: Path) -> AgentConfig:
    try:
        return read_config(path, os.environ)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, str(error)) from error


def _failed(error: IdentityError) -> CommandFailed:
    match error:
        case EnrolmentUnreachable():
            return CommandFailed(UNREACHABLE, str(error))
        case KeyUnusable():
            return CommandFailed(USAGE, str(error))
        case EnrolmentRefused() | ControllerUntrusted() | _:
            return CommandFailed(FAILED, str(error))


# -- showing -----------------------------------------------------------------------------------------------------------


def _facts(enrolled: Enrolled, folder: Path) -> Mapping[str, object]:
    return {**msgspec.to_builtins(enrolled), "folder": str(folder)}


def _show(enrolled: Enrolled, folder: Path, kind: str) -> None:
    print(f"certificate  {enrolled.fingerprint}, until {_date(enrolled.expires_at)}")
    print(f"renewed      from {_date(enrolled.renew_at)} on, at {enrolled.device_url}")
    print(f"broker       {enrolled.broker_url}")
    print(f"identity key {kind}, {enrolled.identity_fingerprint}")
    print(f"folder       {folder}")


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # A JSON string is a basic string of TOML.
