"""What the integration suites share."""

import logging

import pytest
import structlog


@pytest.fixture(scope="module")
def quiet() -> None:
    """A controller that runs in this process: its log would stand among what a command says."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
