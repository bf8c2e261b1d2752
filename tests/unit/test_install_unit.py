"""The systemd unit: what is shipped is what is rendered, it is sandboxed, and no path can say more than a path."""

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from muster_agent.install.places import InstallError, Places, default_places
from muster_agent.install.service import Systemd, choose
from muster_agent.install.unit import render

SHIPPED = Path(__file__).parents[2] / "deploy" / "systemd" / "muster-agent.service"
SYSTEM = default_places(is_user=False, home=Path("/nobody"))
USER = default_places(is_user=True, home=Path("/home/ada"))


def replaced(places: Places, **changes: object) -> Places:
    return msgspec.structs.replace(places, **changes)


def test_the_shipped_unit_is_the_rendered_one() -> None:
    assert SHIPPED.read_text() == render(SYSTEM)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_calls_its_exposure_ok_or_better() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(SHIPPED)]

    scored = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert scored.returncode == 0, scored.stdout  # 20 stands for 2.0 of 10; systemd calls 1.0 to 4.9 OK.


def test_a_service_of_a_user_asks_for_nothing_that_only_root_can_grant() -> None:
    unit = render(USER)

    assert "WantedBy=default.target" in unit
    assert "DynamicUser" not in unit
    assert "ProtectSystem" not in unit


def test_a_data_folder_elsewhere_is_run_by_its_owner() -> None:
    elsewhere = replaced(SYSTEM, data_dir=Path("/srv/muster"))

    unit = render(elsewhere, owner="ada")

    assert "User=ada\nReadWritePaths=/srv/muster\n" in unit
    assert "DynamicUser" not in unit
    with pytest.raises(InstallError, match="owner"):
        render(elsewhere)


def test_a_program_that_the_services_own_user_cannot_reach_is_refused() -> None:
    with pytest.raises(InstallError, match="/opt/muster"):
        render(replaced(SYSTEM, program_dir=Path("/root/muster")))


@pytest.mark.parametrize("path", ["/srv/a b", "/srv/%h", "/srv/x\nExecStart=/bin/sh", "/srv/$HOME", "/srv/'"])
def test_a_path_that_says_more_than_a_path_is_refused(path: str) -> None:
    with pytest.raises(InstallError, match="characters"):
        render(replaced(SYSTEM, data_dir=Path(path)), owner="ada")


def test_systemd_is_chosen_only_where_it_runs(tmp_path: Path) -> None:
    (tmp_path / "systemd").mkdir()
    without = choose("auto", is_user=True, environment={"XDG_RUNTIME_DIR": str(tmp_path)})
    (tmp_path / "systemd" / "private").touch()

    with_it = choose("auto", is_user=True, environment={"XDG_RUNTIME_DIR": str(tmp_path)})

    assert (without, with_it) == ("own", "systemd")
    with pytest.raises(InstallError, match="does not run"):
        choose("systemd", is_user=True, environment={})


def test_systemd_is_told_what_was_written_and_what_was_removed(tmp_path: Path) -> None:
    said, systemctl = tmp_path / "said", tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    systemctl.chmod(0o755)
    service = Systemd(replaced(USER, unit=tmp_path / "units" / "muster-agent.service"), str(systemctl))

    first = service.put()
    second = service.put()
    service.restart()
    service.remove()
    removed_twice = service.remove()

    assert [len(first), len(second), len(removed_twice)] == [1, 0, 0]
    assert not (tmp_path / "units" / "muster-agent.service").exists()
    assert said.read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable muster-agent.service",
        "--user daemon-reload",
        "--user enable muster-agent.service",
        "--user restart muster-agent.service",
        "--user disable --now muster-agent.service",
        "--user daemon-reload",
    ]


def test_what_systemd_says_is_passed_on(tmp_path: Path) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    systemctl.chmod(0o755)

    with pytest.raises(InstallError, match="Access denied"):
        Systemd(USER, str(systemctl)).start()
