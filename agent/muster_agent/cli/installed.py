"""`muster-agent uninstall`, `supervise`: what comes after `install`. Replacing the agent is `upgrade`'s."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from muster_agent.cli.exits import BUSY, FAILED, USAGE, CommandFailed
from muster_agent.config import read_config
from muster_agent.errors import AgentRunning, ConfigInvalid
from muster_agent.install import places as where
from muster_agent.install import service as services
from muster_agent.install import supervisor, versions
from muster_agent.install.places import PROGRAM, InstallError, Places
from muster_agent.install.switching import guard_command

READY_S = 120.0


def uninstall(options: argparse.Namespace) -> None:
    """The command."""
    config = where.find_config(options.config)
    try:
        places = where.load(config)
        if places is None:
            raise CommandFailed(USAGE, f"{config.with_name(where.RECORD_NAME)} is not there: nothing is installed here")
        if options.purge and not (options.yes or options.dry_run):
            _ask_for_purge(places)
        kept = "" if options.purge else f"; kept {places.config} and {places.data_dir}, --purge removes them"
        if options.dry_run:
            print(f"would stop the agent and remove its service ({places.supervisor}) and {places.program_dir}{kept}")
            return
        for line in services.service_of(places).remove():
            print(line)
        _remove_program(places)
        places.record.unlink(missing_ok=True)
        if options.purge:
            _remove_all(places)
    except (InstallError, OSError) as error:
        raise CommandFailed(FAILED, str(error)) from error
    print(f"uninstalled{kept}")


def supervise(options: argparse.Namespace) -> None:
    """The command."""
    config = where.find_config(options.config).absolute()
    try:
        places = where.load(config)
        data_dir = places.data_dir if places is not None else read_config(config, os.environ).data_dir
        own = Path(sys.prefix) / PROGRAM
        program = places.program if places is not None and places.program.exists() else own
        folder = data_dir / "supervisor"
        if options.detach:
            if supervisor.running_pid(folder) is None:
                supervisor.detach((str(program), "supervise", "--config", str(config)))
            return
        if places is not None and versions.pending(places) is not None:  # Power failed while it was being proven.
            before = versions.previous(places) / PROGRAM
            healer = before if before.exists() else program
            supervisor.detach(guard_command(healer.resolve(), config, READY_S))
        command = (str(program), "run", "--config", str(config))
        supervisor.Supervisor(command, folder, before_start=lambda: _count_start(places)).run()
    except (InstallError, ConfigInvalid) as error:
        raise CommandFailed(USAGE, str(error)) from error
    except AgentRunning as error:
        raise CommandFailed(BUSY, str(error)) from error
    except OSError as error:
        raise CommandFailed(FAILED, f"{folder} cannot be used: {error.strerror or error}") from error


def _count_start(places: Places | None) -> str:
    try:
        return "" if places is None else versions.count_start(places)
    except (InstallError, OSError) as error:  # The agent starts all the same.
        return str(error)


def _ask_for_purge(places: Places) -> None:
    if not sys.stdin.isatty():
        raise CommandFailed(USAGE, "--purge removes the identity and every model for good; confirm it with --yes")
    print(f"This removes {places.config} and {places.data_dir}, the device's identity among it, for good.")
    if input("Type yes to go on: ").strip() != "yes":
        raise CommandFailed(FAILED, "nothing was changed")


def _remove_program(places: Places) -> None:
    """Remove what is ours below the program's folder: the environment that somebody else made stays."""
    if (places.program_dir / "versions").is_dir():
        shutil.rmtree(places.program_dir / "versions")
    for name in (places.current.name, "previous", versions.PENDING, versions.LOCK):
        (places.program_dir / name).unlink(missing_ok=True)
    if places.program_dir.is_dir() and not any(places.program_dir.iterdir()):
        places.program_dir.rmdir()


def _remove_all(places: Places) -> None:
    for name in (where.CONFIG_NAME, f"{where.CONFIG_NAME}.bak"):
        places.config.with_name(name).unlink(missing_ok=True)
    if places.data_dir.is_symlink():  # Of a user that systemd made: /var/lib/NAME leads to /var/lib/private/NAME.
        shutil.rmtree(places.data_dir.resolve())
        places.data_dir.unlink()
    elif places.data_dir.exists():
        shutil.rmtree(places.data_dir)
    if places.config.parent.is_dir() and not any(places.config.parent.iterdir()):
        places.config.parent.rmdir()
