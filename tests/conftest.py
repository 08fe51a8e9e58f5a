"""Fixtures shared by the tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from people import make_market

from pidm_core import toy_market


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up Market-1501 root with 6 training and 4 test people; not to be changed."""
    return make_market(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def drawn_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ToyMarket `tiny`, its folder market1501; not to be changed."""
    return toy_market.make(tmp_path_factory.mktemp("toy"), preset="tiny", workers=1)


@pytest.fixture(scope="module")
def small_network() -> Iterator[None]:
    """ResNet18 in ResNet50's place, because time is short."""
    from pidm_reid import finetune

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "NETWORK", "resnet18")
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium of the system; without one its tests are skipped."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=flags)
        yield running
        running.close()
