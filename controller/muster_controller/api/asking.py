"""What a question about devices means for the index. Pure but for the holds and the clock that it is given."""

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from muster_controller.api.schemas.labels import DeviceListing, DeviceQuestion
from muster_controller.api.services import Services
from muster_controller.core.selector import Operator, Requirement, Selector, parse
from muster_controller.fleet_index.view import Filter
from muster_shared.errors import WireError


def parse_labels(labels: list[str]) -> dict[str, str]:
    """Return `key=value` words as a dictionary. Raises WireError."""
    pairs = [label.partition("=") for label in labels]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise WireError(f"a label is written key=value, not {key!r}")
    return {key: value for key, _, value in pairs}


def filter_of(question: DeviceQuestion, given: Services) -> Filter:
    """Return what to ask the index. Raises SelectorInvalid, WireError."""
    labels = parse_labels(question.label)
    exact = tuple(Requirement(key, Operator.IN, frozenset({value})) for key, value in labels.items())
    found = Filter(
        standing=question.state,
        online=question.online,
        device_class=question.device_class,
        selector=Selector((*parse(question.selector).requirements, *exact)),
        text=(question.q or "").strip() or None,
        model=question.model,
        version=question.version,
        has_error=question.error,
        silent_since=None if question.silent is None else given.clock() - question.silent,
    )
    if question.held is None:
        return found
    held = given.holds.all().keys()
    return replace(found, among=held) if question.held else replace(found, apart_from=held)


def listing_of(query: Mapping[str, list[str]]) -> DeviceListing:
    """Return what the address of a page asks, fields that were left empty aside. Raises WireError."""
    said = {key: [value for value in values if value] for key, values in query.items()}
    labels = said.pop("label", [])
    try:
        return DeviceListing.model_validate(
            {key: values[-1] for key, values in said.items() if values} | {"label": labels}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise WireError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def words_of(question: DeviceQuestion) -> dict[str, str | list[str]]:
    """Return the fields that are given, as they stand in an address."""
    said = question.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {
        key: value
        if isinstance(value, list)
        else str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
        for key, value in said.items()
    }
