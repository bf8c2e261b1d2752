"""The committed protocol document is what the code says."""

from pathlib import Path

import pytest

from muster_shared import asyncapi

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol" / "asyncapi.json"


def test_the_committed_document_is_that_of_the_code() -> None:
    committed = DOCUMENT.read_text()

    assert committed == asyncapi.text(), "run: python -m muster_shared.asyncapi > docs/protocol/asyncapi.json"


@pytest.mark.parametrize("name", sorted(asyncapi.document()["channels"]))  # type: ignore[arg-type,call-overload]
def test_every_address_keeps_to_the_limits_of_cloud_brokers(name: str) -> None:
    channels = asyncapi.document()["channels"]
    assert isinstance(channels, dict)

    address = channels[name]["address"]

    assert address.count("/") <= 7
    assert "." not in address
