"""`muster-agent doctor`: what is wrong on this device, and what to do about it."""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from muster_agent.cli.asking import open_connection, token
from muster_agent.cli.exits import FAILED, CommandFailed
from muster_agent.config import AgentConfig, load_config, read_config
from muster_agent.errors import ConfigInvalid, IdentityError
from muster_agent.identity.folder import Enrolled
from muster_agent.install import places as where
from muster_agent.install import versions
from muster_agent.install.doctor import agent, host, identity, network
from muster_agent.install.doctor.finding import Check, Finding, examine, fail
from muster_agent.install.health import Health, endpoint_of, look
from muster_agent.install.places import InstallError, Places

READY_S = 5.0
_SHOWN = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def doctor(options: argparse.Namespace) -> None:
    """The command."""
    findings = diagnose(where.find_config(options.config), offline=options.offline, clock=time.time)
    if options.json:
        print(json.dumps({"checks": msgspec.to_builtins(findings)}, indent=2))
    else:
        for finding in findings:
            print(f"{_SHOWN[finding.verdict]}  {finding.check:<12} {finding.said}")
            if finding.todo:
                print(f"{'':18} -> {finding.todo}")
    failed = [finding.check for finding in findings if finding.verdict == "fail"]
    if failed:
        raise CommandFailed(FAILED, f"wrong here: {', '.join(failed)}")


def diagnose(config_path: Path, *, offline: bool, clock: Callable[[], float]) -> list[Finding]:
    """Return every finding, in the order in which they are worth mending. It changes nothing."""
    usual: dict[str, Check] = {"memory": host.check_memory}
    try:
        config = read_config(config_path, os.environ)
    except ConfigInvalid as error:
        problem = fail("config", str(error), "correct it, or run `muster-agent install`")
        return [problem, *examine(usual)]
    return examine(
        {"config": lambda: _config(config_path, config)} | _checks(config_path, config, offline, clock) | usual
    )


def _config(path: Path, config: AgentConfig) -> Finding:
    try:
        load_config(path, os.environ)
    except ConfigInvalid as error:
        return fail("config", str(error), "do what it says, then run doctor again")
    return agent.check_config(path, config)


def _checks(path: Path, config: AgentConfig, offline: bool, clock: Callable[[], float]) -> dict[str, Check]:
    enrolled, health = _enrolled(config), look(config, token())
    folder = config.identity_folder
    try:
        places: Places | None = where.load(path)
    except InstallError:
        places = None
    checks: dict[str, Check] = {
        "disk": lambda: host.check_disk(config.data_dir),
        "hardware": lambda: host.check_hardware(config.device_class),
        "trust": lambda: identity.check_trust(
            config.data_dir / "trust", config.bootstrap_root or folder.root_path, clock()
        ),
        "engine": lambda: agent.check_engines(config.runtimes),
    }
    if config.tls.cert is None and (enrolled is not None or not config.broker_url):
        checks["certificate"] = lambda: identity.check_certificate(folder, config.identity.key, clock())
    if not offline:
        if enrolled is not None:
            checks["clock"] = lambda: network.check_clock(enrolled.device_url, folder.ca(), clock)
        if config.broker_url or enrolled is not None:
            checks["broker"] = lambda: _broker(path, health)
        if places is not None and versions.pending(places) is not None:
            checks["upgrade"] = agent.interrupted_upgrade
        checks["agent"] = lambda: agent.judge_agent(health, _is_ready(config, health), places)
    return checks


def _broker(path: Path, health: Health) -> Finding:
    try:
        config = load_config(path, os.environ)
    except ConfigInvalid as error:
        return fail("broker", f"where it is cannot be told: {error}", "see `config` here")
    tls = config.tls
    return network.check_broker(
        config.broker,
        f"muster-{config.fleet}-{config.device}",
        *(None if file is None else str(file) for file in (tls.ca, tls.cert, tls.key)),
        may_connect=not health.is_online,
    )


def _enrolled(config: AgentConfig) -> Enrolled | None:
    try:
        return config.identity_folder.current()
    except IdentityError:
        return None


def _is_ready(config: AgentConfig, health: Health) -> bool:
    if not health.is_up:
        return False
    connection = open_connection(endpoint_of(config), READY_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
