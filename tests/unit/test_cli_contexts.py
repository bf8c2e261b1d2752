"""Contexts of the command line: which controller is meant, and the file of them."""

from pathlib import Path

import pytest

from muster_controller.cli import contexts
from muster_controller.cli.contexts import (
    Chosen,
    Context,
    ContextInvalid,
    Contexts,
    ContextsUnreadable,
    ContextUnknown,
    Said,
    choose,
)

KNOWN = Contexts("lab", {"lab": Context("http://127.0.0.1:9000"), "prod": Context("https://prod.example", "/ca.pem")})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (Said(url="http://a", env_url="http://b", env_context="prod"), Chosen("http://a", None)),
        (Said(context="prod", env_url="http://b"), Chosen("https://prod.example", Path("/ca.pem"), "prod")),
        (Said(env_url="http://b", env_context="prod"), Chosen("http://b", None)),
        (Said(env_context="prod"), Chosen("https://prod.example", Path("/ca.pem"), "prod")),
        (Said(), Chosen("http://127.0.0.1:9000", None, "lab")),
        (Said(context="prod", ca=Path("/mine")), Chosen("https://prod.example", Path("/mine"), "prod")),
    ],
)
def test_what_is_said_nearest_to_the_command_counts(said: Said, meant: Chosen) -> None:
    assert choose(said, KNOWN) == meant


def test_without_a_chosen_context_the_data_folder_is_asked() -> None:
    assert choose(Said(), KNOWN.using(None)) == Chosen(None, None)


def test_two_options_that_name_a_controller_are_refused() -> None:
    with pytest.raises(ContextInvalid, match="one of them"):
        choose(Said(url="http://a", context="prod"), KNOWN)


def test_an_unknown_context_is_said_with_those_that_are_known() -> None:
    with pytest.raises(ContextUnknown, match="lab, prod"):
        choose(Said(context="pord"), KNOWN)


def test_the_first_context_is_chosen_and_the_chosen_one_keeps_it_under_a_new_name() -> None:
    made = Contexts().having("one", Context("http://one")).having("two", Context("http://two"))

    renamed = made.renamed("one", "uno")

    assert made.current == "one"
    assert renamed.current == "uno"
    assert renamed.without("uno").current is None
    with pytest.raises(ContextInvalid, match="already"):
        made.renamed("one", "two")


@pytest.mark.parametrize(("name", "url"), [("-c", "http://a"), ("a b", "http://a"), ("a", "ftp://a"), ("a", "a:80")])
def test_names_and_urls_that_are_none_are_refused(name: str, url: str) -> None:
    with pytest.raises(ContextInvalid):
        Contexts().having(name, Context(url))


def test_the_file_comes_back_and_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    assert contexts.read() == Contexts()
    contexts.write(KNOWN)

    assert contexts.read() == KNOWN
    assert contexts.path().stat().st_mode & 0o777 == 0o600
    contexts.path().write_text('{"contexts": 3}')
    with pytest.raises(ContextsUnreadable, match="mend or delete"):
        contexts.read()
