"""`muster-agent install`: from a token to an agent that is kept running.

    token ──▶ identity ──▶ agent.toml ──▶ current ──▶ install.json ──▶ service ──▶ up ──▶ the first model serves

Each step looks first whether it is done, so the same command repairs what is missing; the identity is never replaced.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from muster_agent.cli import enrol as enrolling
from muster_agent.cli.asking import token
from muster_agent.cli.exits import FAILED, USAGE, CommandFailed
from muster_agent.config import AgentConfig, read_config
from muster_agent.errors import ConfigInvalid, IdentityDamaged, IdentityError, KeyUnusable
from muster_agent.identity import key_uri
from muster_agent.identity.folder import Enrolled, IdentityFolder
from muster_agent.install import places as where
from muster_agent.install import service as services
from muster_agent.install.health import Health, look
from muster_agent.install.places import PROGRAM, InstallError, Places
from muster_agent.io import durable
from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId

UP_S = 120.0
"""For a first start on a slow card with cold caches."""
_LOOK_S = 0.25


@dataclass
class Job:
    """An installation under way."""

    options: argparse.Namespace
    places: Places
    plan: enrolling.Plan
    config: AgentConfig | None
    """None: there is no usable one yet."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr if self.options.json else sys.stdout, flush=True)


def install(options: argparse.Namespace) -> None:
    """The command."""
    try:
        job = _job(options)
        if options.dry_run:
            for line in _intended(job):
                print(line)
            return
        _carry_out(job)
    except InstallError as error:
        raise CommandFailed(USAGE, str(error)) from error


# -- installing --------------------------------------------------------------------------------------------------------


def _job(options: argparse.Namespace) -> Job:
    is_user = options.user or os.geteuid() != 0
    usual = where.default_places(is_user=is_user, home=Path.home())
    config_path = (options.config_dir or usual.config.parent).absolute() / where.CONFIG_NAME
    before = where.load(config_path)
    config = _readable(config_path)
    places = Places(
        is_user=is_user,
        config=config_path,
        data_dir=(options.data_dir or (config.data_dir if config is not None else usual.data_dir)).absolute(),
        program_dir=(options.program_dir or (usual if before is None else before).program_dir).absolute(),
        unit=usual.unit,
        supervisor=services.choose(options.supervisor, is_user=is_user, environment=os.environ),
    )
    device = options.device or (config.device if config is not None else enrolling.default_device())
    device_class = options.device_class or (config.device_class if config is not None else enrolling.default_class())
    try:
        ids.name(device, "--device")
        ids.name(device_class, "--class")
        key_uri.parse_key(options.key or key_uri.FILE)
    except (WireError, KeyUnusable) as error:
        raise InstallError(str(error)) from error
    plan = enrolling.Plan(
        controller_url=options.controller or (config.identity.device_url if config is not None else ""),
        device=DeviceId(device),
        device_class=device_class,
        data_dir=places.data_dir,
        folder=places.data_dir / "identity" if config is None else config.identity_folder.path,
        key=options.key or (config.identity.key if config is not None else key_uri.FILE),
        labels=(dict(config.labels) if config is not None else {}) | options.labels,
        serial=options.serial or enrolling.hardware_serial(),
    )
    return Job(options, places, plan, config)


def _readable(path: Path) -> AgentConfig | None:
    """Return what is configured; None where nothing is, or nothing that can be used."""
    if not path.exists():
        return None
    try:
        return read_config(path, {})
    except ConfigInvalid as error:
        print(f"muster-agent: {error}; it is written anew and kept beside", file=sys.stderr)
        return None


def _intended(job: Job) -> list[str]:
    places, plan = job.places, job.plan
    enrolled = _enrolled(job)
    who = f"device {plan.device}, class {plan.device_class}"
    return [
        f"would enrol at {plan.controller_url or '(--controller is missing)'}: {who}, identity in {plan.folder}"
        if enrolled is None
        else f"enrolled already: device {enrolled.device} in fleet {enrolled.fleet}",
        f"would keep {places.config}"
        if enrolled is not None and _fits(job, enrolled)
        else f"would write {places.config}",
        f"would let {places.current} lead to {Path(sys.prefix)}",
        f"would start the agent by {places.supervisor}"
        + (f": {places.unit}" if places.supervisor == "systemd" else ""),
    ]


def _carry_out(job: Job) -> None:
    places = job.places
    if not (Path(sys.prefix) / PROGRAM).exists():
        raise InstallError(f"{Path(sys.prefix) / PROGRAM} is missing: install the packages into a virtual environment")
    changed: list[str] = []
    enrolled = _enrolled(job)
    if enrolled is None:
        enrolled = _enrol(job)
        changed.append(f"enrolled {enrolled.device} in fleet {enrolled.fleet}")
    elif enrolled.device != job.plan.device:
        raise InstallError(
            f"{job.plan.folder} has the identity of {enrolled.device}, not of {job.plan.device}; "
            "uninstall with --purge first"
        )
    changed += _put_config(job, enrolled)
    _fetch_root(job)
    changed += _put_program(places)
    where.save(places)
    service = services.service_of(places)
    changed += service.put()
    for line in changed:
        job.say(line)
    # What was changed, an agent that runs has not read.
    (service.restart if changed else service.start)()
    health = Health() if places.supervisor == "none" else _await(job)
    _report(job, enrolled, changed, health, service.hint())


def _enrolled(job: Job) -> Enrolled | None:
    try:
        return IdentityFolder(job.plan.folder).current()
    except IdentityDamaged as error:
        job.say(f"{error}")
        return None


def _enrol(job: Job) -> Enrolled:
    if not job.plan.controller_url:
        raise InstallError("name the controller: --controller https://HOST:8443")
    job.places.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return enrolling.carry_out(job.plan, enrolling.token_of(job.options.token), wait_s=job.options.wait)


def _fits(job: Job, enrolled: Enrolled) -> bool:
    """Whether the configuration that is there says what is asked for; what else it says is the owner's."""
    config, plan = job.config, job.plan
    return (
        config is not None
        and (config.fleet, config.device, config.device_class) == (enrolled.fleet, enrolled.device, plan.device_class)
        and config.data_dir == plan.data_dir
        and plan.labels.items() <= config.labels.items()
        and config.identity.key == plan.key
    )


def _put_config(job: Job, enrolled: Enrolled) -> list[str]:
    path = job.places.config
    if _fits(job, enrolled):
        return []
    changed = [f"wrote {path}"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            backup = path.with_name(f"{path.name}.bak")
            durable.replace(backup, path.read_bytes())
            changed.append(f"what was in it is in {backup}")
        durable.replace(path, enrolling.config_text(job.plan, enrolled).encode())
    except OSError as error:
        raise InstallError(f"{path} cannot be written ({error.strerror}); run this as root, or with --user") from error
    return changed


def _fetch_root(job: Job) -> None:
    """Get the trust root of a controller that had none when this device enrolled; the agent does not start without."""
    folder = IdentityFolder(job.plan.folder)
    if folder.root():
        return
    from muster_agent import __version__
    from muster_agent.identity import client
    from muster_agent.identity.keys import open_key

    try:
        client.renew(folder, open_key(job.plan.key, folder, make=False), agent_version=__version__)
    except IdentityError as error:
        raise InstallError(f"the trust root cannot be fetched: {error}") from error
    if not folder.root():
        raise InstallError(
            "the controller has no trust root yet: run `muster init` and `muster trust push` there, then this again"
        )


def _put_program(places: Places) -> list[str]:
    """Let `current` lead to this environment, unless it leads to one that works: `upgrade` may have moved it on."""
    if places.program.exists():
        return []
    try:
        places.program_dir.mkdir(parents=True, exist_ok=True)
        where.point(places.current, Path(sys.prefix).resolve())
    except OSError as error:
        raise InstallError(
            f"{places.current} cannot be made ({error.strerror}); run this as root, or with --user"
        ) from error
    return [f"{places.current} leads to {Path(sys.prefix).resolve()}"]


def _await(job: Job) -> Health:
    """Return how the agent does, once its first model serves, or when there is none to wait for."""
    # Our supervisor hands its environment on to the agent; systemd has one of its own.
    environment = os.environ if job.places.supervisor == "own" else {}
    config = read_config(job.places.config, environment)
    health = _until(config, lambda health: health.is_up, UP_S)
    if not health.is_up:
        raise CommandFailed(
            FAILED,
            f"the agent does not answer within {UP_S:g} s; run `muster-agent doctor --config {job.places.config}`",
        )
    job.say(f"the agent {health.version} is up at {health.endpoint}")
    # What is assigned comes with the first messages of the broker.
    return _until(config, lambda health: health.is_online and bool(health.serving), job.options.serve_wait)


def _until(config: AgentConfig, holds: Callable[[Health], bool], seconds: float) -> Health:
    deadline = time.monotonic() + seconds
    while True:
        health = look(config, token())
        if holds(health) or time.monotonic() > deadline:
            return health
        time.sleep(_LOOK_S)


def _report(job: Job, enrolled: Enrolled, changed: list[str], health: Health, hint: str) -> None:
    places = job.places
    if job.options.json:
        facts: dict[str, Any] = msgspec.to_builtins(places, enc_hook=str)
        state = {"health": msgspec.to_builtins(health), "changed": changed, "hint": hint}
        print(json.dumps({"device": enrolled.device, "fleet": enrolled.fleet, **facts, **state}, indent=2))
        return
    if health.serving:
        print(f"it serves {', '.join(health.serving)}")
    elif health.assigned:
        print(f"{', '.join(health.assigned)} on the way; `muster-agent status --config {places.config}` shows it")
    elif health.is_up:
        print("no release is assigned to this device yet" if health.is_online else "the broker is not connected yet")
    if hint:
        print(hint)
