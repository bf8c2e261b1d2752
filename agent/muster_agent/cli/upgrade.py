"""`muster-agent upgrade`: the agent by a signed version of itself, with a way back that needs nobody."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from muster_agent import __version__
from muster_agent.cli.asking import token
from muster_agent.cli.exits import FAILED, USAGE, CommandFailed
from muster_agent.config import AgentConfig, read_config
from muster_agent.errors import ConfigInvalid
from muster_agent.install import places as where
from muster_agent.install import supervisor, versions, wheel_set
from muster_agent.install.agent_trust import signed_targets
from muster_agent.install.building import build
from muster_agent.install.health import Health, look
from muster_agent.install.places import PROGRAM, InstallError, Places
from muster_agent.install.service import Service, service_of
from muster_agent.install.switching import UpgradeFailed, guard_command, prove
from muster_agent.install.versions import Pending

BUSY_S = 2.0
RECOVER_S = 3600.0


def upgrade(options: argparse.Namespace) -> None:
    """The command."""
    config_path = where.find_config(options.config)
    try:
        places = where.load(config_path)
        if places is None:
            raise InstallError("this agent was not installed by `muster-agent install`; do that first")
        if options.count_start:
            if said := versions.count_start(places):
                print(said)
            return
        config = read_config(config_path, os.environ if places.supervisor == "own" else {})
        if options.recover:
            _recover(places, config, options.ready_wait)
        elif options.back:
            _back(places, config, options.ready_wait)
        else:
            _upgrade(options, places, config)
    except (UpgradeFailed, OSError) as error:
        raise CommandFailed(FAILED, str(error)) from error
    except (InstallError, ConfigInvalid) as error:
        raise CommandFailed(USAGE, str(error)) from error


def _upgrade(options: argparse.Namespace, places: Places, config: AgentConfig) -> None:
    offer = wheel_set.parse(wheel_set.read_manifest(options.folder))
    if options.to not in (None, offer.version):
        raise InstallError(f"{options.folder} holds {offer.version}, not {options.to}")
    metadata = options.folder / "metadata"
    root = config.bootstrap_root or config.identity_folder.root_path
    targets = signed_targets(
        config.data_dir / "trust", root, metadata if metadata.is_dir() else None, lambda: datetime.now(UTC)
    )
    wheel_set.check_signed(offer, targets)
    variant = wheel_set.fitting(offer, sys.version_info[:2], platform.machine())
    _check_newer(offer, places, allow_older=options.allow_older)
    if options.dry_run:
        print(f"{offer.version} (release {offer.manifest.release}) is signed, and fits: {variant.name}")
        return
    with versions.alone(places, BUSY_S):
        if versions.pending(places) is not None:
            raise InstallError("an upgrade was interrupted; `muster-agent upgrade --recover` finishes or undoes it")
        environment = build(places, offer, variant, options.folder)
        _switch(places, config, environment, offer.version, options.ready_wait)


def _check_newer(offer: wheel_set.WheelSet, places: Places, *, allow_older: bool) -> None:
    """Old versions are signed as well, and have the faults for which there are new ones."""
    runs = places.current.resolve().parent / wheel_set.MANIFEST
    release = wheel_set.parse(runs.read_bytes()).manifest.release if runs.exists() else 0
    if offer.version == _running(places):
        raise InstallError(f"{offer.version} is what runs already")
    if offer.manifest.release <= release and not allow_older:
        raise InstallError(
            f"release {offer.manifest.release} is not newer than {release}, which runs; see --allow-older"
        )


def _running(places: Places) -> str:
    """Return the version that `current` is: ours, unless an upgrade has moved it on since we began."""
    runs = places.current.resolve()
    return runs.parent.name if runs.name == "venv" and versions.is_whole(runs) else __version__


def _back(places: Places, config: AgentConfig, wait_s: float) -> None:
    link = versions.previous(places)
    if not (link / PROGRAM).exists() or link.resolve() == places.current.resolve():
        raise InstallError("there is no version before this one")
    with versions.alone(places, BUSY_S):
        environment = link.resolve()
        _switch(places, config, environment, _version_of(environment), wait_s)


def _version_of(environment: Path) -> str:
    import subprocess

    done = subprocess.run([environment / PROGRAM, "--version"], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()[-1]


def _switch(places: Places, config: AgentConfig, environment: Path, version: str, wait_s: float) -> None:
    before = look(config, token())
    old = places.current.resolve()
    link = versions.previous(places)
    earlier = link.resolve() if link.exists() else None
    switch = Pending(version=version, before=old, after=environment.resolve(), earlier=earlier, serving=before.serving)
    service = service_of(places)
    if places.supervisor != "none":
        supervisor.detach(guard_command(old / PROGRAM, places.config, wait_s))
    versions.begin(places, switch)
    if places.supervisor == "none":
        versions.settle(places)
        print(f"{version} is installed; {service.hint()}")
        return
    _told(prove(places, service, switch, _look(config), wait_s))


def _recover(places: Places, config: AgentConfig, wait_s: float) -> None:
    """Wait until nobody works on the versions, then finish what was left, if anything was."""
    with versions.alone(places, RECOVER_S):
        switch = versions.pending(places)
        if switch is None:
            print("nothing is left to finish")
            return
        service: Service = service_of(places)
        _told(prove(places, service, switch, _look(config), wait_s))


def _look(config: AgentConfig) -> Callable[[], Health]:
    return lambda: look(config, token())


def _told(health: Health) -> None:
    print(f"{health.version} runs, and serves {', '.join(health.serving) or 'nothing yet'}")
