"""The committed protocol documents are what the code says."""

from pathlib import Path

import pytest

from muster_controller.api import document as openapi
from muster_shared import asyncapi

DOCUMENTS = Path(__file__).parents[2] / "docs" / "protocol"


def test_the_committed_message_document_is_that_of_the_code() -> None:
    committed = (DOCUMENTS / "asyncapi.json").read_text()

    assert committed == asyncapi.text(), "run: python -m muster_shared.asyncapi > docs/protocol/asyncapi.json"


def test_the_committed_api_document_is_that_of_the_code() -> None:
    committed = (DOCUMENTS / "openapi.json").read_text()

    assert committed == openapi.text(), "run: python -m muster_controller.api.document > docs/protocol/openapi.json"


@pytest.mark.parametrize("name", sorted(asyncapi.document()["channels"]))  # type: ignore[arg-type,call-overload]
def test_every_address_keeps_to_the_limits_of_cloud_brokers(name: str) -> None:
    channels = asyncapi.document()["channels"]
    assert isinstance(channels, dict)

    address = channels[name]["address"]

    assert address.count("/") <= 7
    assert "." not in address
