"""Who is recognised, by hand: features are given, the rule is what is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidm_core import Record
from pidm_reid import finetune, identity
from pidm_reid.config import NetworkConfig


def record(name: str) -> Record:
    return Record(Path(name), name, int(name[:4]), int(name[6]))


REAL = {  # in the plane
    "0001_c1_a": (1.0, 0.0),
    "0001_c1_b": (1.0, 0.1),
    "0001_c2_a": (0.9, 0.4),
    "0002_c1_a": (0.0, 1.0),
    "0002_c2_a": (0.1, 1.0),
    "0003_c1_a": (-1.0, 0.0),  # seen by one camera: no figure
    "0004_c1_a": (3.0, 0.0),  # like 0001 by the first camera
    "0004_c2_a": (0.0, 3.0),  # and like 0002 by the second
}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Any:
    """identity.recognised of images at these places."""

    def recognised(added: dict[str, tuple[float, float]]) -> tuple[float, float] | None:
        places = {**REAL, **added}

        def embed(_: Any, images: list[Record], **__: Any) -> np.ndarray:
            return np.array([places[image.name] for image in images], np.float32)

        monkeypatch.setattr(finetune, "embed", embed)
        records = ([record(name) for name in names] for names in (REAL, added))
        return identity.recognised(*records, network={}, config=NetworkConfig())

    return recognised


def test_the_nearest_image_but_the_persons_own_by_that_camera_decides(found: Any) -> None:
    added = {
        "0001_c1_pidm0": (0.8, 0.4),  # nearest of all is 0001_c2_a
        "0001_c1_pidm1": (1.0, 0.0),  # like its source, and then like 0001_c2_a
        "0001_c2_pidm0": (0.0, 0.9),  # like 0002
        "0002_c1_pidm0": (0.9, 0.5),  # like 0001
        "0003_c1_pidm0": (-1.0, 0.1),  # whom no other camera saw
        "0004_c1_pidm0": (3.0, 0.0),  # like its source, and then like 0001
    }
    assert found(added) == (5 / 7, 2 / 5)


def test_without_a_second_camera_there_is_no_figure(found: Any) -> None:
    assert found({}) is None
    assert found({"0003_c1_pidm0": (-1.0, 0.1)}) is None
    assert found({"0003_c2_pidm0": (-1.0, 0.1)}) == (5 / 7, 1.0)


def test_of_people_seen_by_one_camera_each_there_is_no_figure(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in REAL if "c2" in name]:
        monkeypatch.delitem(REAL, name)
    assert found({"0001_c2_real": (1.0, 0.0)}) is None  # a withheld one
