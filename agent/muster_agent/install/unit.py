"""The systemd unit of the agent, as text. `deploy/systemd/muster-agent.service` is what it gives for the usual places.

It writes no file and asks no systemd. Sources: systemd.exec(5), systemd.service(5), systemd.resource-control(5).
"""

import re
from pathlib import Path

from muster_agent.install.places import PROGRAM, InstallError, Places
from muster_agent.install.versions import PENDING

STATE = Path("/var/lib")
WATCHDOG_S = 60
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_PLAIN = re.compile(r"[A-Za-z0-9/._+@:-]+")  # What needs no quotes and no %% in a unit.
_SANDBOX = """\
ProtectSystem=strict
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
PrivateMounts=yes
CapabilityBoundingSet=
KeyringMode=private
RemoveIPC=yes
# Accelerators, and a TPM for the identity key; nothing else in /dev.
DevicePolicy=closed
DeviceAllow=char-drm rw
DeviceAllow=char-accel rw
DeviceAllow=/dev/tpmrm0 rw
"""
_SECCOMP = """\
NoNewPrivileges=yes
UMask=0077
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
"""
# Engines set the affinity of their threads and their priority; without these they run slower, or end.
_ENGINES = "SystemCallFilter=sched_setaffinity sched_setscheduler setpriority mbind set_mempolicy get_mempolicy\n"


def render(places: Places, *, owner: str = "") -> str:
    """Return the unit.

    Args:
        owner: The user of a data folder that is not directly below /var/lib; there systemd makes a user of its own, and
            nobody else may see the folder.

    Raises:
        InstallError: a path cannot stand in a unit, or the service could not reach it.
    """
    for path in (places.config, places.data_dir, places.program_dir):
        if not _PLAIN.fullmatch(str(path)):
            raise InstallError(f"{path} has characters that a unit cannot hold; choose another folder")
    service = _head(places) + _SECCOMP + _ENGINES
    if places.is_user:
        return service + "\n[Install]\nWantedBy=default.target\n"
    is_state = places.data_dir.parent == STATE
    if is_state:
        name = places.data_dir.name
        who = f"DynamicUser=yes\nStateDirectory={name}\nStateDirectoryMode=0700\nRuntimeDirectory={name}\n"
    else:
        if not owner:
            raise InstallError(f"{places.data_dir} is not in {STATE}, so its owner has to run the service")
        who = f"User={owner}\nReadWritePaths={places.data_dir}\nPrivateUsers=no\n"
    return f"{service}{who}ProtectHome={_homes(places, is_dynamic=is_state)}\n{_SANDBOX}\n[Install]\n" + (
        "WantedBy=multi-user.target\n"
    )


def _head(places: Places) -> str:
    return f"""\
# Written by `muster-agent install`; what you add belongs in a drop-in (`systemctl edit muster-agent`).
[Unit]
Description=Muster agent: serves models locally and keeps them current
After=network.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
{_count_start(places)}
ExecStart={places.program} run --config {places.config}
Restart=always
RestartSec=1
WatchdogSec={WATCHDOG_S}
TimeoutStartSec=90
TimeoutStopSec=20
"""


def _count_start(places: Places) -> str:
    """Return what lets a version that was never proven be taken back after a power loss: see `versions.count_start`."""
    pending, before = places.program_dir / PENDING, places.program_dir / "previous" / PROGRAM
    command = f"test ! -e {pending} || exec {before} upgrade --count-start --config {places.config}"
    return f"ExecStartPre={'-' if places.is_user else '-+'}/bin/sh -c '{command}'"


def _homes(places: Places, *, is_dynamic: bool) -> str:
    """Return ProtectHome=: programs of people's own are read there, where a foreign user may at all."""
    environment = places.current.resolve() if places.current.exists() else places.program_dir
    needed = [environment, places.config, places.data_dir]
    if is_dynamic and any(path.is_relative_to("/root") for path in needed):
        raise InstallError(
            f"{environment} is in /root, which the service's own user cannot read; install the packages in /opt/muster "
            "(python3 -m venv /opt/muster) and run that `muster-agent install`"
        )
    return "read-only" if any(path.is_relative_to(home) for path in needed for home in _HOMES) else "yes"
