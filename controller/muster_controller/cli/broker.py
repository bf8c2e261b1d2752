"""`muster broker`: the configuration of a broker of your own, written from the same table as that of ours."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.broker.handout import Foreign, Handout, handouts
from muster_controller.broker.security import Admission, TlsFiles
from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.client_names import mixer_name
from muster_controller.registry import durable
from muster_shared import ids
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, FleetId

app = typer.Typer(help="A broker of your own.", no_args_is_help=True, epilog=EXIT_CODES)

ALL = 10_000_000
_FOLDERS = {
    Foreign.MOSQUITTO: Path("/etc/mosquitto/certs"),
    Foreign.NATS: Path("/etc/nats/certs"),
    Foreign.EMQX: Path("/opt/emqx/etc/certs"),
}


@app.callback()
def group() -> None:
    """Keep `config` a word of its own, as long as it is the only one."""


@app.command(epilog=EXIT_CODES)
def config(
    context: typer.Context,
    broker: Annotated[Foreign, typer.Option("--for", help="Which broker.")],
    fleet: Annotated[str, typer.Option(help="The fleet whose topics it carries.")],
    ca: Annotated[Path | None, typer.Option(help="On its machine: PEM that certificates chain to.")] = None,
    cert: Annotated[Path | None, typer.Option(help="On its machine: its own certificate and chain.")] = None,
    key: Annotated[Path | None, typer.Option(help="On its machine: the key of that.")] = None,
    crl: Annotated[Path | None, typer.Option(help="On its machine: the revocation lists (Mosquitto).")] = None,
    host: Annotated[str, typer.Option(help="The address it listens on; all of them without.")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8883,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no controller who is enrolled and who is revoked.")
    ] = False,
    devices: Annotated[
        Path | None, typer.Option(help="With --offline: a device's id in each line; - is stdin.")
    ] = None,
    revoked: Annotated[Path | None, typer.Option(help="With --offline: those that may not come any more.")] = None,
    mixers: Annotated[Path | None, typer.Option(help="With --offline: a mixer's name in each line.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to write the files to, instead of printing them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write what a broker of yours needs, so that each device may do what is its own and nothing else.

    Write it again after devices were enrolled (NATS) or revoked (all), and make the broker read it. docs/brokers.md
    says for each how, and what it cannot do.
    """
    if (devices or revoked or mixers) and not offline:
        fail("--devices, --revoked and --mixers are for --offline; without it the controller says who is enrolled")
    try:
        known = FleetId(ids.name(fleet, "fleet"))
        lists = (_read(devices), _read(revoked), _read(mixers)) if offline else _ask(context, known)
        folder = _FOLDERS[broker]
        tls = TlsFiles(ca or folder / "ca.pem", cert or folder / "broker.pem", key or folder / "broker.key", crl)
        admission = Admission(known, host, tls, *lists)
    except (MusterError, OSError) as error:
        refuse(error)
    files = handouts(broker, admission, port)
    if out is None:
        emit([asdict(one) for one in files], as_json, lambda _console: _print(files))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for one in files:
            durable.write(out / one.name, one.text.encode())
    except OSError as error:
        fail(error)

    def human(console: Console) -> None:
        for one in files:
            console.print(f"{out / one.name} belongs into {one.place}", highlight=False, soft_wrap=True)

    emit([{"file": str(out / one.name), "place": one.place} for one in files], as_json, human)


def _print(files: list[Handout]) -> None:
    for one in files:
        sys.stdout.write(one.text if len(files) == 1 else f"##### {one.place} #####\n{one.text}\n")


def _ask(context: typer.Context, fleet: FleetId) -> tuple[tuple[DeviceId, ...], tuple[DeviceId, ...], tuple[str, ...]]:
    """Return which devices may come, which names may not, and which mixers may."""
    with connect(context) as api:
        found = api.pages("/identities", "identities", ALL, {})
        mixers = api.get("/mixers")["mixers"]
    accepted = tuple(DeviceId(one["device"]) for one in found if one["state"] == "accepted")
    gone = tuple(DeviceId(one["device"]) for one in found if one["state"] in ("revoked", "rejected"))
    gone += tuple(DeviceId(mixer_name(fleet, one["mixer"])) for one in mixers if one["state"] == "revoked")
    return accepted, gone, tuple(one["mixer"] for one in mixers if one["state"] == "accepted")


def _read(file: Path | None) -> tuple[DeviceId, ...]:
    if file is None:
        return ()
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    return tuple(sorted({DeviceId(ids.name(line.strip(), "device")) for line in text.splitlines() if line.strip()}))
