"""`muster model`: releases. Building and signing are offline (`models_offline`); here they meet the controller."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from muster_controller.cli import completion, models_offline
from muster_controller.cli.arguments import AsJson, ModelArgument
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.registry.bundles import MANIFEST, check_bundle_folder
from muster_shared.errors import MusterError

MODELS_MAX = 10_000

app = typer.Typer(help="Models and their releases.", no_args_is_help=True, epilog=EXIT_CODES)
models_offline.register(app)


@app.command(epilog=EXIT_CODES)
def publish(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    signed: Annotated[Path, typer.Option("--signed", help="Its metadata, as `muster model sign` wrote it.")],
    as_json: AsJson = False,
) -> None:
    """Upload a bundle with its signatures. What is there already is not sent again."""
    try:
        manifest = check_bundle_folder(bundle)
        metadata = signed.read_text(encoding="utf-8")
        total = sum(file.length for file in manifest.files)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            connect(context) as api,
            Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as progress,
        ):
            task = progress.add_task(f"{manifest.model} {manifest.version}", total=total)
            for file in {file.sha256: file for file in manifest.files}.values():
                api.upload(bundle / file.path, file.sha256, lambda count: progress.advance(task, count))
            body = {"metadata": metadata, "manifest": (bundle / MANIFEST).read_text(encoding="utf-8")}
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
    as_json: AsJson = False,
) -> None:
    """Bring signed metadata without a new bundle: a revocation or a renewal."""
    try:
        with connect(context) as api:
            body = {"metadata": signed.read_text(encoding="utf-8"), "manifest": None}
            found = api.post(f"/models/{model}/releases", body)
    except (MusterError, OSError) as error:
        refuse(error)
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
    """Show a model, or one of its releases."""
    try:
        with connect(context) as api:
            found = api.get(f"/models/{model}" if version is None else f"/models/{model}/versions/{version}")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        if version is None:
            console.print(f"{found['name']}: releases {', '.join(found['versions']) or 'none'}.")
            console.print(f"Baseline: {found['baseline'] or 'none'}.")
            for each in found["baselines"] if len(found["baselines"]) > 1 else ():
                console.print(f"  {each['version']} for {each['selector'] or 'every device'}, by {each['rollout']}")
            return
        console.print(f"{model} {version}, release {found['release']}, licence {found['licence']}")
        console.print(f"bundle {found['bundle_sha256']}", highlight=False)
        for variant in found["variants"]:
            console.print(f"  {variant['name']}: {variant['runtime']} {variant['precision']}")

    emit(found, as_json, human)
