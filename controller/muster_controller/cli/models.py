"""`muster model`: releases. Building and signing are offline (`models_offline`); here they meet the controller."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from muster_controller.cli import completion, model_words, models_offline
from muster_controller.cli.arguments import AsJson, ModelArgument, VersionArgument
from muster_controller.cli.asking import get
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.registry.bundles import MANIFEST, check_bundle_folder
from muster_shared.errors import MusterError

MODELS_MAX = 10_000
Check = Annotated[bool, typer.Option("--check", help="Only say what it would do, and send nothing large.")]

app = typer.Typer(help="Models and their releases.", no_args_is_help=True, epilog=EXIT_CODES)
models_offline.register(app)


@app.command(epilog=EXIT_CODES)
def publish(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    signed: Annotated[Path, typer.Option("--signed", help="Its metadata, as `muster model sign` wrote it.")],
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Upload a bundle with its signatures, which are judged first. What is there already is not sent again."""
    try:
        manifest = check_bundle_folder(bundle)
        body = {
            "metadata": signed.read_text(encoding="utf-8"),
            "manifest": (bundle / MANIFEST).read_text(encoding="utf-8"),
        }
        with connect(context) as api:
            found = api.post(f"/models/{manifest.model}/releases/check", body)
        if check:
            emit(found, as_json, lambda console: _say_check(console, found))
            return
        total = sum(file.length for file in manifest.files)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            connect(context) as api,
            Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as progress,
        ):
            task = progress.add_task(f"{manifest.model} {manifest.version}", total=total)
            for file in {file.sha256: file for file in manifest.files}.values():
                api.upload(bundle / file.path, file.sha256, lambda count: progress.advance(task, count))
            found = api.post(f"/models/{manifest.model}/releases", body)
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        done = "published" if found["changed"] else "was published already"
        console.print(f"{manifest.model} {manifest.version} {done}; releases: {', '.join(found['versions'])}.")
        console.print(f"Next: `muster rollout create {manifest.model} {manifest.version}`.")

    emit(found, as_json, human)


@app.command("push-metadata", epilog=EXIT_CODES)
def push_metadata(
    context: typer.Context,
    model: ModelArgument,
    signed: Annotated[Path, typer.Option("--signed", help="As `muster model revoke` wrote it.")],
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Bring signed metadata without a new bundle: a revocation or a renewal."""
    try:
        with connect(context) as api:
            body = {"metadata": signed.read_text(encoding="utf-8"), "manifest": None}
            found = api.post(f"/models/{model}/releases{'/check' if check else ''}", body)
    except (MusterError, OSError) as error:
        refuse(error)
    if check:
        emit(found, as_json, lambda console: _say_check(console, found))
        return
    emit(found, as_json, lambda console: console.print(f"{model}: releases {', '.join(found['versions']) or 'none'}."))


@app.command("list", epilog=EXIT_CODES)
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models and their releases."""
    try:
        with connect(context) as api:
            models = api.pages("/models", "models", MODELS_MAX, {})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("model", "releases", "baseline", "serves")
        for model in models:
            serves = ", ".join(f"{version} on {count}" for version, count in model["devices"].items())
            table.add_row(model["name"], ", ".join(model["versions"]), model["baseline"] or "–", serves or "nowhere")
        console.print(table if models else "No model is known; `muster model add NAME` gives one its keys.")

    emit(models, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(
    context: typer.Context,
    model: ModelArgument,
    version: Annotated[
        str | None, typer.Argument(help="One release; default: all.", autocompletion=completion.versions)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model, or one of its releases: what it claims, who signed it, where it runs and how fast."""
    try:
        with connect(context) as api:
            found = api.get(f"/models/{model}" if version is None else f"/models/{model}/versions/{version}")
            if version is not None:
                found["trust"] = api.get(f"/models/{model}/versions/{version}/trust")
                found["use"] = api.get(f"/models/{model}/versions/{version}/use")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        if version is not None:
            model_words.say_version(console, model, found, time.time())
            return
        console.print(f"{found['name']}: releases {', '.join(found['versions']) or 'none'}.")
        console.print(f"Baseline: {found['baseline'] or 'none'}.")
        for each in found["baselines"] if len(found["baselines"]) > 1 else ():
            console.print(f"  {each['version']} for {each['selector'] or 'every device'}, by {each['rollout']}")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def compare(
    context: typer.Context,
    model: ModelArgument,
    before: VersionArgument,
    after: VersionArgument,
    as_json: AsJson = False,
) -> None:
    """Compare two releases: claims, files, card, and how fast each runs on each class of device.

    What they see and say is compared by `muster metrics compare` and `muster metrics slices`.
    """
    found = get(context, f"/models/{model}/compare", {"before": before, "after": after})
    emit(found, as_json, lambda console: model_words.say_comparison(console, found))


def _say_check(console: Console, found: dict[str, Any]) -> None:
    if not found["is_new"]:
        console.print("Exactly this was published before.")
        return
    for version in found["added"]:
        missing = len(found["missing"])
        sent = (
            f"{missing} file{'' if missing == 1 else 's'} would be sent" if missing else "nothing large would be sent"
        )
        console.print(f"{found['model']} {version} would be added; {sent}.")
    for version, devices in found["removed"].items():
        console.print(f"{found['model']} {version} would be revoked; {devices} devices serve it now.")
    if not found["added"] and not found["removed"]:
        console.print("It would be renewed.")
