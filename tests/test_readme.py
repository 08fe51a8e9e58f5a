"""The README is true: its code runs and its file tree is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import synthesize

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_file_tree_is_the_real_one() -> None:
    tree = README.split("## The files")[1].split("```")[1]
    listed, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0] if line.strip() else ""
        if name.endswith("/"):
            folder = name
        elif name:
            listed.add(folder + name)
    real = {
        str(path.relative_to(ROOT))
        for pattern in ("pidm_core/*.py", "pidm_reid/*.py", "tools/*.py", "configs/*.yaml")
        for path in ROOT.glob(pattern)
        if path.name != "__init__.py"
    }
    assert listed == real


@pytest.mark.filterwarnings("ignore::UserWarning:torchreid")
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(first, names)
    assert names["images"].shape[::3] == (1, 3)  # type: ignore[attr-defined]
    command = re.search(r"`python tools/synthesize.py (--ratio[^`]*)`", README)
    assert command is not None
    assert synthesize.main([*command[1].split(), "--steps", "1"]) == 0
    exec(second, names)
    batch = next(iter(names["manager"].train_loader))  # type: ignore[attr-defined]
    assert batch["img"].shape == (8, 3, 128, 64)


def test_the_makefile_and_ci_run_what_the_readme_says() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"setup", "demo", "test", "check"} <= set(targets)
    ci = (ROOT / ".ci" / "run").read_text()
    assert [line for line in ci.splitlines() if line.startswith("make")] == [
        "make check",
        "make test",
    ]
