"""Questions about devices, labels and their edits, and saved views."""

from typing import Annotated

from pydantic import ConfigDict, Field

from muster_controller.api.schemas.base import Next, Said, Schema
from muster_controller.api.standing import Standing
from muster_controller.core.selector import TEXT_MAX
from muster_controller.fleet_index.view import Sort

_Word = Annotated[str, Field(max_length=128)]


class DeviceQuestion(Schema):
    """Which devices: those to which everything given applies. Nothing given: all of them."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    state: Standing | None = Field(None, description="How it stands against what it should run.")
    online: bool | None = None
    device_class: _Word | None = Field(None, alias="class")
    label: list[_Word] = Field(default=[], max_length=32, description="key=value; repeat it.")
    selector: str = Field("", max_length=TEXT_MAX, description="As in policies: `site in (oslo,bergen),!spare`.")
    q: _Word | None = Field(None, description="Part of the id.")
    model: _Word | None = Field(None, description="Serves this model.")
    version: _Word | None = Field(None, description="Serves this version, of `model` or of any.")
    held: bool | None = Field(None, description="Pinned, quarantined or decommissioned by an operator.")
    error: bool | None = Field(None, description="Some model of it reported an error.")
    silent: float | None = Field(None, ge=0, le=1e9, description="Not heard for so many seconds.")


class DeviceChoice(DeviceQuestion):
    """As a part of an order: a field that is misspelt would choose more devices than are meant, so it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DeviceListing(DeviceQuestion):
    sort: str = Field("id", max_length=16, description=f"{', '.join(Sort)}; with `-` in front the other way round.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many.")
    cursor: str | None = Field(None, max_length=256, description="`next` of the page before, of the same sort.")


class LabelValueView(Schema):
    value: str
    devices: int
    standings: dict[Standing, int]


class LabelView(Schema):
    """A label key in use; keys below `hw/` and `agent/` are what devices report of themselves."""

    key: str
    devices: int = Field(description="How many have it.")
    values: int = Field(description="How many values it has.")
    top: list[LabelValueView] = Field(description="The values that most devices have.")


class LabelPage(Schema):
    labels: list[LabelView] = Field(description="By key.")
    next: Next


class LabelOrder(Schema):
    where: DeviceChoice | None = Field(None, description="Whose labels.")
    selector: str | None = Field(None, max_length=TEXT_MAX, description="Short for `where.selector`.")
    set: dict[_Word, _Word] = Field(default={}, max_length=32)
    unset: list[_Word] = Field(default=[], max_length=32)
    changes: list[_Word] = Field(default=[], max_length=32, description="The same in words: `key=value`, `key-`.")
    dry_run: bool = Field(False, description="Only say what would happen.")
    expect: int | None = Field(None, ge=0, description="Refused where another number of devices fits by now.")
    reason: Said = ""


class LabelsChanged(Schema):
    devices: int = Field(description="That fit.")
    changed: int = Field(description="Whose labels are others now.")
    unchanged: int = Field(description="That had them so already.")
    without_identity: int = Field(description="That no operator accepted: their labels are their own.")
    dry_run: bool


class ViewOrder(Schema):
    query: str = Field(max_length=TEXT_MAX, description="Of the page's address, without `?`.")


class SavedView(Schema):
    page: str
    name: str
    query: str
    saved_at: float


class SavedViewPage(Schema):
    views: list[SavedView] = Field(description="By page and name.")
    next: Next
