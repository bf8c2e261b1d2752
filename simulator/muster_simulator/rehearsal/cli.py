"""`muster rollout simulate`: the command line. What is slow to import waits until it is called.

exit 0   it was rehearsed; what came of it is printed
exit 1   the policy, the fleet or an option cannot be rehearsed: the reason
exit 6   the fleet was to be asked of a controller, and none answers
exit 130 stopped by Ctrl-C
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from muster_controller.cli.client import connect, refuse
from muster_controller.cli.output import emit, fail
from muster_shared.errors import MusterError

if TYPE_CHECKING:  # They import the whole machine: not before the command is called.
    from muster_controller.core.policy import Policy
    from muster_simulator.rehearsal.fleet_shape import Document
    from muster_simulator.rehearsal.scenarios import Harm, Scenario

LIVE = "live"
PAGE = 1000
RUNS_MAX = 100_000
INTERRUPTED = 130


def simulate(
    context: typer.Context,
    policy: Annotated[Path, typer.Argument(help="The policy, YAML or JSON.", exists=True, dir_okay=False)],
    fleet: Annotated[
        str, typer.Option(help=f"What `muster device list --json` printed, or a shape in YAML; {LIVE}: ask.")
    ] = LIVE,
    true_rate: Annotated[
        str | None, typer.Option(help="Devices that fail with the new release, such as 5%.", show_default=False)
    ] = None,
    base_rate: Annotated[str, typer.Option(help="Devices that fail with the old one.")] = "1%",
    latency: Annotated[
        str | None, typer.Option(help="How the p95 latency changes, such as +20%.", show_default=False)
    ] = None,
    silent: Annotated[
        str | None, typer.Option(help="Devices that fall silent after the switch, such as 5%.", show_default=False)
    ] = None,
    disagree: Annotated[
        str | None, typer.Option(help="Devices whose trial disagrees, such as 5%.", show_default=False)
    ] = None,
    device_class: Annotated[
        str | None, typer.Option("--class", help="Harm is confined to this class.", show_default=False)
    ] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="What is broken fails before the switch.")] = False,
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", "-s", help="Only these: good, failing, bricks, slower, one-class, silent, shock."),
    ] = None,
    after_report_s: Annotated[
        float | None, typer.Option(min=0, help="From a device's report to its being counted.", show_default=False)
    ] = None,
    approve_after_s: Annotated[float, typer.Option(min=0, help="How long people take to approve.")] = 0.0,
    skip_pauses: Annotated[
        bool, typer.Option("--skip-pauses", help="People let every wave pass that the gate cannot decide.")
    ] = False,
    runs: Annotated[int, typer.Option(min=1, max=RUNS_MAX, help="Of each scenario.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer, whatever --jobs.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = os.cpu_count() or 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every single run included.")] = False,
) -> None:
    """Try a policy on your fleet's shape, many times over in virtual time: does it stop what it should, and how soon?

    Without harm of your own (--true-rate, --latency, --silent, --disagree) the usual kinds of it are tried.

    Exit codes: 0 rehearsed, 1 refused, 2 usage, 6 no controller answers.
    """
    from muster_controller.policy_document import parse_policy
    from muster_simulator.rehearsal.picture import show
    from muster_simulator.rehearsal.repeat import Order, repeat
    from muster_simulator.rehearsal.run import People
    from muster_simulator.rehearsal.scenarios import Harm, RehearsalRefused
    from muster_simulator.rehearsal.summary import summarise

    try:
        read = parse_policy(policy.read_bytes(), policy.name)
        document = _fleet(context, fleet, {} if after_report_s is None else {"after_report_s": after_report_s})
        base = _rate(base_rate, "--base-rate")
        harm = Harm(
            rate=base if true_rate is None else _rate(true_rate, "--true-rate"),
            silent=_rate(silent or "0", "--silent"),
            slower=_change(latency or "0", "--latency"),
            disagreeing=_rate(disagree or "0", "--disagree"),
            only_class=device_class,
            fails="self_test" if self_test else "probation",
        )
        is_own = any(each is not None for each in (true_rate, latency, silent, disagree))
        chosen = _chosen(read, document, harm, base, scenario, is_own=is_own)
        order = Order(read, document, chosen, seed, runs, People(approve_after_s, skip_pauses))
        rehearsal = order.rehearsal()
        results = []
        with _progress(as_json) as progress:
            task = progress.add_task("rehearsing", total=runs * len(chosen))
            results = repeat(order, jobs, lambda _, number: progress.advance(task, number))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except RehearsalRefused as error:
        fail(error)
    except (MusterError, OSError) as error:
        refuse(error)
    summaries = [summarise(each, found) for each, found in zip(chosen, results, strict=True)]
    found_fleet = rehearsal.fleet
    document_of_all = {
        "policy": read,
        "fleet": {
            "devices": found_fleet.devices,
            "classes": found_fleet.classes,
            "offline": found_fleet.shape.offline,
            "back_per_hour": found_fleet.shape.back_per_hour,
        },
        "notes": rehearsal.notes,
        "seed": seed,
        "runs": runs,
        "scenarios": [
            {"summary": summary, "results": found} for summary, found in zip(summaries, results, strict=True)
        ],
    }
    classes = ", ".join(f"{count:,} {name}" for name, count in found_fleet.classes.items())
    head = f"{policy.name} on {found_fleet.devices:,} devices ({classes}): {runs:,} runs each, seed {seed}"
    emit(document_of_all, as_json, lambda console: show(console, head, rehearsal.notes, summaries))


def _fleet(context: typer.Context, fleet: str, overrides: dict[str, float]) -> "Document":
    from muster_simulator.rehearsal import fleet_shape

    if fleet != LIVE:
        path = Path(fleet)
        if not path.is_file():
            fail(f"--fleet {fleet}: no such file; write `muster device list --json --limit 100000 > fleet.json`")
        return fleet_shape.parse(path.read_bytes(), path.name, overrides)
    devices: list[object] = []
    cursor: str | None = None
    with connect(context) as api:
        while len(devices) < fleet_shape.DEVICES_MAX:
            page = api.get("/devices", {"limit": PAGE} | ({} if cursor is None else {"cursor": cursor}))
            devices += page["devices"]
            cursor = page["next"]
            if cursor is None:
                break
    return fleet_shape.of_devices(devices, "the controller's fleet", overrides)


def _chosen(
    policy: "Policy",
    document: "Document",
    harm: "Harm",
    base: float,
    names: list[str] | None,
    *,
    is_own: bool,
) -> "tuple[Scenario, ...]":
    from muster_simulator.rehearsal import scenarios

    classes = document.select(policy.selector).classes
    if harm.only_class is not None and harm.only_class not in classes:
        raise scenarios.RehearsalRefused(f"--class {harm.only_class}: there are {', '.join(classes) or 'no devices'}")
    usual = (*scenarios.standard(base, classes, harm.only_class), scenarios.shocked(base))
    if is_own:
        usual = (usual[0], scenarios.own(harm, base), usual[-1])
    known = [each.name for each in usual]
    if unknown := sorted(set(names or []) - set(known)):
        raise scenarios.RehearsalRefused(f"--scenario {', '.join(unknown)}: choose of {', '.join(known)}")
    return tuple(each for each in usual if each.name in names) if names else usual[:-1]


def _rate(text: str, option: str) -> float:
    from muster_simulator.rehearsal.fleet_shape import share
    from muster_simulator.rehearsal.scenarios import RehearsalRefused

    found = share(text if text.endswith("%") else _number(text, option), option)
    if found >= 1:
        raise RehearsalRefused(f"{option} is {text}; it must be below 100%")
    return found


def _change(text: str, option: str) -> float:
    from muster_simulator.rehearsal.scenarios import RehearsalRefused

    found = _number(text.removesuffix("%"), option) / (100 if text.endswith("%") else 1)
    if not -0.9 <= found <= 100:
        raise RehearsalRefused(f'{option} is {text}; write a relative change such as "+20%"')
    return found


def _number(text: str, option: str) -> float:
    from muster_simulator.rehearsal.scenarios import RehearsalRefused

    try:
        return float(text)
    except ValueError as error:
        raise RehearsalRefused(f'{option} is {text[:40]!r}; write a share such as "5%"') from error


def _progress(as_json: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json)
