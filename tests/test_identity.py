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


REAL = {  # of two people, in the plane
    "0001_c1_a": (1.0, 0.0),
    "0001_c1_b": (1.0, 0.1),
    "0001_c2_a": (0.9, 0.4),
    "0002_c1_a": (0.0, 1.0),
    "0002_c2_a": (0.1, 1.0),
    "0003_c1_a": (-1.0, 0.0),  # seen by one camera: no figure
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


def test_the_nearest_image_by_another_camera_decides(found: Any) -> None:
    added = {
        "0001_c1_pidm0": (0.8, 0.4),  # nearest of all is 0001_c2_a
        "0001_c1_pidm1": (1.0, 0.0),  # like its source, and then like 0001_c2_a
        "0001_c2_pidm0": (0.0, 0.9),  # like 0002
        "0002_c1_pidm0": (0.9, 0.5),  # like 0001
        "0003_c1_pidm0": (-1.0, 0.1),  # whom no other camera saw
    }
    assert found(added) == (1.0, 0.5)


def test_without_a_second_camera_there_is_no_figure(found: Any) -> None:
    assert found({}) is None
    assert found({"0003_c1_pidm0": (-1.0, 0.1)}) is None
    assert found({"0003_c2_pidm0": (-1.0, 0.1)}) == (1.0, 1.0)
