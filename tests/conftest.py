"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from people import make_market


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up Market-1501 root with 6 training and 4 test people; not to be changed."""
    return make_market(tmp_path_factory.mktemp("data"))
