"""What an edit of labels makes of them, and which edits are none."""

import csv
import io

import msgspec
import pytest

from harness.ledgers import A, twin
from muster_controller.api.device_export import csv_pieces, json_pieces
from muster_controller.api.labels import completions
from muster_controller.api.views import device_view
from muster_controller.fleet_index.index import Change, FleetIndex
from muster_controller.identity.relabelling import LabelEdit, edit_of
from muster_controller.ports import Device
from muster_shared.enrolment import LABELS_MAX
from muster_shared.errors import WireError


def test_words_set_and_take_off() -> None:
    edit = edit_of({"line": "1"}, ["old"], ["site=oslo", "spare-"])

    assert edit == LabelEdit({"line": "1", "site": "oslo"}, frozenset({"old", "spare"}))
    assert edit.applied({"site": "bergen", "spare": "1", "kept": "x"}) == {"line": "1", "site": "oslo", "kept": "x"}
    assert str(edit) == "line=1, site=oslo, old-, spare-"


@pytest.mark.parametrize(
    "words",
    [[], ["site"], ["=oslo"], ["-"], ["hw/class=nuc"], ["agent/version-"], ["a=1", "a=2"], ["a=1", "a-"], ["a=ø"]],
)
def test_what_is_no_edit_is_refused(words: list[str]) -> None:
    with pytest.raises(WireError):
        edit_of({}, [], words)


def test_a_device_cannot_be_given_more_labels_than_it_may_have() -> None:
    many = {f"key{number}": "1" for number in range(LABELS_MAX)}

    with pytest.raises(WireError, match="more than"):
        LabelEdit({"another": "1"}).applied(many)


def test_a_selector_goes_on_behind_what_is_typed() -> None:
    index = FleetIndex()
    index.apply([Change(A, None, None, Device(A, twin=twin()), None)])

    view = index.view()

    assert completions(view, "line=2,si") == ["line=2,site"]
    assert completions(view, "hw/class in (a,b),!li") == ["hw/class in (a,b),!line"]
    assert completions(view, "line!=") == ["line!=2"]
    assert completions(view, "")[:2] == ["line", "site"]


def test_what_a_device_says_is_no_formula_in_a_spreadsheet() -> None:
    said = msgspec.structs.replace(twin(), labels={"=cmd": "1"})

    rows = list(csv.DictReader(io.StringIO("".join(csv_pieces([device_view(Device(A, twin=said), None)])))))

    assert rows[0]["labels"] == "'=cmd=1"


def test_an_export_of_many_pieces_is_one_array() -> None:
    view = device_view(Device(A, twin=twin()), None)

    text = "".join(json_pieces([view] * 600))

    assert len(msgspec.json.decode(text.encode())) == 600
