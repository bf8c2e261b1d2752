"""`muster mixer`: the process that sums anonymous windows and puts noise on the sums, and what its ledger says."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import mixer_identity
from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import EXIT_CODES
from muster_controller.cli.output import emit, fail
from muster_controller.logs import configure_logs
from muster_controller.mixer.accounting import eps_tight
from muster_controller.mixer.certificate import CertificateThread
from muster_controller.mixer.config import CLOCK_SPEED_MAX, MixerConfig, check, parse_cohorts
from muster_controller.mixer.folder import MixerFolder
from muster_controller.mixer.ledger import LEDGER_FILE, MixLedger
from muster_controller.mixer.mixer import mixer_state
from muster_shared.errors import MusterError
from muster_shared.ids import FleetId
from muster_shared.metrics import COHORTS, DAY_S, DELTA, K_MIN, RHO_DAY, MixerState

app = typer.Typer(
    help="The mixer: it alone reads what devices measured, and tells sums with noise.",
    no_args_is_help=True,
    epilog=EXIT_CODES,
)
mixer_identity.attach(app)

Data = Annotated[Path, typer.Option("--data", "-d", envvar="MUSTER_MIXER_DATA", help="The mixer's folder.")]
Cohorts = Annotated[str, typer.Option(help="What it sums; each cohort belongs to one mixer of the fleet.")]
RhoDay = Annotated[float, typer.Option(help="Its privacy budget of a device and day, rho of zCDP; it can be lowered.")]
Delta = Annotated[float, typer.Option(help="For which eps is told.")]
KMin = Annotated[int, typer.Option(help="Devices without which a cell is not published; it can be raised.")]


@app.command(epilog=EXIT_CODES)
def run(
    data: Data,
    broker: Annotated[
        str | None,
        typer.Option(envvar="MUSTER_MIXER_BROKER_URL", help="Its address. Default: the one that the controller tells."),
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="For a broker without TLS: whose topics.")] = None,
    cohorts: Cohorts = f"0-{COHORTS - 1}",
    rho_day: RhoDay = RHO_DAY,
    delta: Delta = DELTA,
    k_min: KMin = K_MIN,
    clock_speed: Annotated[
        float, typer.Option(help=f"For labs: seconds measured in a second, {CLOCK_SPEED_MAX:g} at most.")
    ] = 1.0,
    clock_since: Annotated[
        float, typer.Option(help="For labs: since when, Unix seconds; devices have the same in `[metrics]`.")
    ] = 0.0,
    settle: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds for the broker to tell what it kept, after a connect.")
    ] = 30.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Mix in the foreground, until SIGTERM or Ctrl-C.

    It may be killed at any moment: what was counted, charged and published is in its ledger. No option publishes more
    than what is promised about privacy.
    """
    from muster_controller.mixer import process  # Slow to import, and no other command needs all of it.
    from muster_controller.mixer.place import find_place

    stopping = threading.Event()
    try:
        folder = MixerFolder(data)
        config = check(
            MixerConfig(
                mixer=folder.card().mixer,
                fleet=FleetId(""),
                cohorts=parse_cohorts(cohorts),
                rho_day=rho_day,
                delta=delta,
                k_min=k_min,
                clock_speed=clock_speed,
                clock_since=clock_since,
                settle_s=settle,
            )
        )
        configure_logs(as_json=log_json, verbose=verbose)
        place = find_place(folder, broker, fleet)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        with _renewing(folder, needed=place.link.cert_path is not None):
            process.run(replace(config, fleet=place.fleet), place, stopping)
    except (MusterError, OSError) as error:
        fail(error)


@app.command(epilog=EXIT_CODES)
def state(
    data: Data,
    rho_day: RhoDay = RHO_DAY,
    delta: Delta = DELTA,
    k_min: KMin = K_MIN,
    cohorts: Cohorts = f"0-{COHORTS - 1}",
    as_json: AsJson = False,
) -> None:
    """Show what the ledger says: budgets, counts, and what waits for the controller. Beside a mixer that runs, too."""
    try:
        card = MixerFolder(data).card()
        if not (data / LEDGER_FILE).exists():
            fail(f"{data} has no ledger yet; `muster mixer run --data {data}` begins it")
        config = check(MixerConfig(card.mixer, FleetId(""), parse_cohorts(cohorts), rho_day, delta, k_min))
        ledger = MixLedger(data / LEDGER_FILE, read_only=True)
        told = mixer_state(config, ledger, card.key_id, time.time())
        waiting, pending, dropped = ledger.outbox_size(), ledger.cells(), ledger.counters().get("outbox_dropped", 0)
        ledger.close()
    except (MusterError, OSError) as error:
        fail(error)
    tight = {"eps_day_tight": eps_tight(rho_day, delta), "eps_30_days_tight": eps_tight(30 * rho_day, delta)}
    document = msgspec.to_builtins(told) | tight
    document |= {"outbox": waiting, "outbox_dropped": dropped, "pending_cells": pending}
    emit(document, as_json, lambda console: _show(console, told, tight, waiting, pending))


@contextmanager
def _renewing(folder: MixerFolder, *, needed: bool) -> Iterator[None]:
    """Keep the certificate of the connection current, where there is one."""
    if not needed:
        yield
        return
    thread = CertificateThread(folder, time.time)
    thread.start()
    try:
        yield
    finally:
        thread.stop()


def _show(console: Console, told: MixerState, tight: dict[str, float], waiting: int, pending: int) -> None:
    console.print(f"Mixer {told.mixer}, key {told.key}", highlight=False)
    console.print(
        f"eps {told.eps_day:.2f} a day and {told.eps_30_days:.1f} in 30 days at delta {told.delta:g} "
        f"(by the tight bound {tight['eps_day_tight']:.2f} and {tight['eps_30_days_tight']:.1f}); "
        f"cells of {told.k_min} devices and more",
        highlight=False,
    )
    console.print(
        f"{told.windows} windows taken; {told.refused} refused, {told.repeated} repeated, {told.too_late} too late, "
        f"{told.suppressed} in cells that were too small; {told.out_of_budget} cells out of budget",
        highlight=False,
    )
    console.print(f"{pending} cells are being summed; {waiting} messages wait for the controller", highlight=False)
    table = Table("day", "rho spent", "of", box=None)
    for one in told.budgets:
        day = datetime.fromtimestamp(one.day * DAY_S, UTC).date().isoformat()
        table.add_row(day, f"{one.rho_spent:.4g}", f"{one.rho_budget:.4g}")
    if told.budgets:
        console.print(table)
