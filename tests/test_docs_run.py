"""The commands of README and docs run, in their order: on a handful of drawn people, with the
configuration files of the repository made small. Each is asked first what it would do, and must
then leave everything as it is. docs/results.md names the hardware that its commands ran on.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from people import standing
from safetensors.torch import save_file

from pidm_core import DONE, SKIPPED, estimator

ROOT = Path(__file__).parent.parent
TRAINED = "python tools/train_pidm.py --config configs/market1501_small.yaml --out runs/market1501"
PAGES = {  # and what a page expects to be there
    "README.md": (),
    "docs/getting_started.md": (),
    "docs/own_people.md": (),
    "docs/slots.md": (),
    "docs/images.md": (TRAINED,),
    "docs/frameworks.md": (TRAINED,),
    "docs/experiment.md": (TRAINED,),
    "docs/paper.md": (),
}
READERS = ("doctor", "verify")
ELSEWHERE = {  # what other tests run, or two machines
    "convert_official": "test_official",
    "make": "test_readme and the demo itself",
    "accelerate": "test_train",
    "studio": "test_studio",
    "export": "a line for another framework",
    "ln": "a line for another framework",
}
PLACEHOLDER = re.compile(r"\b(DIR|FILE|FOLDER)\b")
MODEL = {
    "size": [32, 16], "patch": 2, "channels": 32, "channel_mults": [1, 2], "blocks_per_level": 1,
    "texture_factors": [2, 4],
}  # fmt: skip
TRAIN = {"steps": 2, "batch_size": 2, "warmup_steps": 1, "save_every": 1, "sample_every": 0}
STAGE = {"steps": 2, "warmup_steps": 1}
STUDENT = {
    "height": 64, "width": 32, "batch_size": 4, "weights": "none", "standard": STAGE,
    "finetune": STAGE,
}  # fmt: skip
LESS = {
    "train_reid": "--height 64 --width 32 --batch-size 4 --weights none --standard.steps 2 "
    "--standard.warmup-steps 1 --finetune.steps 2 --finetune.warmup-steps 1",
    "render_pairs": "--count 4",
}


def small(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration file, for seconds instead of days."""
    if "model" in settings:
        pretrained = settings["train"].get("init")  # whose network it must have
        settings["model"] = settings["model"] if pretrained else MODEL
        settings["train"] |= TRAIN
        settings["sample"] = {**settings.get("sample", {}), "steps": 1}
    if "teacher" in settings:
        settings["train"] |= TRAIN
    if "rows" in settings:
        settings |= {"ratios": settings["ratios"][:1], "seeds": [0], "student": STUDENT}
        settings["selection"] = {"network": STAGE}
    return settings


@pytest.fixture
def sandbox(drawn_people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose configurations are small, with drawn people in the place of its data sets."""
    for place in ("market1501", "gallery", "toy_tiny", "toy_market"):
        shutil.copytree(drawn_people, tmp_path / "data" / place)
    (tmp_path / "data/gallery/market-annotation-train.csv").unlink()
    (tmp_path / "weights").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights/model.safetensors")
    (tmp_path / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        settings = small(yaml.safe_load(path.read_text()))
        (tmp_path / "configs" / path.name).write_text(json.dumps(settings))

    def estimate(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        views = ("front", "back", "left", "right")
        return [standing(views[len(image) % 4]) * len(image) / 64 for image in images]

    monkeypatch.setattr(estimator, "load_estimator", lambda weights: estimate)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # where a tool finds another
    return tmp_path


def documented(page: str, home: Path) -> list[list[str]]:
    """The command lines in a page's shell blocks and prose, as words."""
    text = (ROOT / page).read_text().replace("\\\n", " ").replace("/path/to", str(home / "data"))
    code = re.findall(r"```(\w*)\n(.*?)```|`(python tools/[^`\n]+)`", text, re.DOTALL)
    blocks = [block if kind == "bash" else prose for kind, block, prose in code]
    lines = [line for block in blocks for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def files(home: Path) -> dict[Path, int]:
    """All files, and when each was written."""
    return {path: path.lstat().st_mtime_ns for path in home.rglob("*") if not path.is_dir()}


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(
    page: str, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = 0
    for words in [*map(shlex.split, PAGES[page]), *documented(page, sandbox)]:
        if words[0] in ELSEWHERE or Path(words[1]).stem in ELSEWHERE:
            continue
        if PLACEHOLDER.search(" ".join(words)):
            continue
        assert words[0] == "python", words
        tool = Path(words[1]).stem
        main = importlib.import_module(f"tools.{tool}").main
        command = [*words[2:], *shlex.split(LESS.get(tool, ""))]
        if tool not in READERS and command[0] != "score":
            before = files(sandbox)
            assert main([*command, "--dry-run"]) in (DONE, SKIPPED), words
            assert capsys.readouterr().out.strip(), words
            assert files(sandbox) == before, words
        code = main(command)
        printed = capsys.readouterr()
        assert code in (DONE, SKIPPED), (words, printed.err)
        assert printed.out.strip(), words
        ran += 1
    assert ran > len(PAGES[page])
