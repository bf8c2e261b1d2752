"""What commands say: YAML beside JSON, and what is said again while one watches; the stream's messages."""

import json
from collections.abc import Iterator

import pytest
import typer
import yaml
from typer.testing import CliRunner

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.outfit import outfit
from muster_controller.cli.output import Form, Human, Speaking, emit, speaking, written
from muster_controller.cli.watching import Told, told

VALUE = {"name": "größe", "devices": [1, 2], "selector": None}


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()

    @app.command("list")
    def list_(context: typer.Context, as_json: AsJson = False) -> None:
        emit(VALUE, as_json, lambda console: console.print(f"words for {context.info_name}"))

    @app.command()
    def order(as_json: AsJson = False) -> None:
        emit(VALUE, as_json, lambda console: console.print("done"))

    @app.command()
    def silent() -> None:
        pass

    outfit(app)
    return app


def test_a_value_is_the_same_as_json_and_as_yaml(app: typer.Typer) -> None:
    as_json = CliRunner().invoke(app, ["order", "--json"])
    as_yaml = CliRunner().invoke(app, ["order", "--yaml"])
    words = CliRunner().invoke(app, ["order"])

    assert json.loads(as_json.stdout) == yaml.safe_load(as_yaml.stdout) == VALUE
    assert words.stdout == "done\n"


def test_both_forms_at_once_are_a_usage_error(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["order", "--json", "--yaml"]).exit_code == 2


def test_only_what_looks_can_be_watched_and_what_says_nothing_stays_as_it_is(app: typer.Typer) -> None:
    helped = {name: CliRunner().invoke(app, [name, "--help"]).stdout for name in ("list", "order", "silent")}

    assert "--watch" in helped["list"]
    assert "--watch" not in helped["order"]
    assert "--yaml" in helped["order"]
    assert "--yaml" not in helped["silent"]


def test_documents_that_follow_each_other_can_be_told_apart() -> None:
    assert written(VALUE, Form.JSON, is_line=True).count("\n") == 1
    assert list(yaml.safe_load_all(written(VALUE, Form.YAML, is_line=True) * 2)) == [VALUE, VALUE]


def test_a_repeated_command_gives_what_it_says_to_who_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str | Human] = []

    with speaking(Speaking(Form.JSON, said.append)):
        emit(VALUE, True, lambda _: None)

    assert [json.loads(str(each)) for each in said] == [VALUE]
    assert capsys.readouterr().out == ""


def test_messages_of_the_stream_are_read_whatever_lies_between_them() -> None:
    def lines() -> Iterator[bytes]:
        yield from (b": a comment\r\n", b"id: s-1\r\n", b"event: heartbeat\r\n", b"data: {}\r\n", b"\r\n")
        yield from (b"\n", b"event:device\n", b'data: {"id": "a:b"}\n', b"id:s-2\n", b"\n", b"event: cut off\n")

    assert list(told(lines())) == [Told("heartbeat", "s-1"), Told("device", "s-2")]
