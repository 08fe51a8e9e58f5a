"""A GPU lent for minutes, rehearsed on a CPU: stopped anywhere it goes on to the same table."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from test_reid_tools import call
from tiny import TINY

from pidm_core import (
    BAD_DATA,
    DONE,
    TERMINATED,
    PIDMConfig,
    UserError,
    read_json,
    read_weights,
    save_config,
    toy_market,
    write_bytes,
)
from pidm_core import packs as packs_module
from pidm_core.config import SampleConfig, TrainConfig
from pidm_core.packs import unpack, write_pack
from pidm_core.state import State
from pidm_reid.bench import Bench
from pidm_reid.config import ReidTable, Stage, StudentConfig
from tools.slot import _bring_back

ROOT = Path(__file__).parents[1]
STEPS = 5
TRAIN = PIDMConfig(
    model=TINY,
    train=TrainConfig(
        steps=STEPS, batch_size=4, warmup_steps=1, save_every=100, sample_every=0, precision="fp32"
    ),
    sample=SampleConfig(steps=1, guidance="none", batch_size=8),
)
STAGE = Stage(steps=2, warmup_steps=1)
TABLE = ReidTable(
    name="table",
    data="data/toy",
    run="runs/toy",
    ratios=(0.5,),
    per_image=1,
    student=StudentConfig(
        height=32,
        width=16,
        batch_size=8,
        weights="none",
        precision="fp32",
        standard=STAGE,
        finetune=STAGE,
    ),
)
RUN = ("run", "--train", "train.yaml", "--table", "table.yaml")

pytestmark = pytest.mark.usefixtures("small_network", "_terminable")


@pytest.fixture
def _terminable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM as `pidm_core.run` hears it; tools beside one another, as Python finds them there."""

    def terminate(signum: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    old = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, old)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packs of the tiny drawn people; not to be changed."""
    home = tmp_path_factory.mktemp("slot")
    toy_market.make(home / "toy", preset="tiny")
    assert call("slot", "pack", "--data", home / "toy", "--packs", home / "packs") == DONE
    return home / "packs"


def prepare(home: Path, packs: Path, monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """A machine as it is lent: the configurations, and the packs that were carried."""
    (home / "packs").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(home)
    save_config(TRAIN, "train.yaml")
    save_config(TABLE, "table.yaml")
    for part in parts:
        (home / f"packs/{part}.tar.xz").write_bytes((packs / f"{part}.tar.xz").read_bytes())


def over_after(count: int, act: Callable[..., Any]) -> Callable[..., Any]:
    """`act`, but the time is up when it begins for the count-th time."""
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0  # a limit was set
            signal.setitimer(signal.ITIMER_REAL, 1e-6)
            time.sleep(0.01)
        return act(*args, **options)

    return wrapped


def figures(out: Path) -> list[Any]:
    """What a table says, times left out."""
    lines = read_json(out / "table.json")
    return [{key: value for key, value in line.items() if key != "hours"} for line in lines]


def slot() -> int:
    """One call with a limit; the exit code."""
    try:
        return call("slot", *RUN, "--minutes", 9)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_slots_that_end_anywhere_make_the_table_of_one_without_end(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "whole", packs, monkeypatch, "train", "test")
    assert call("slot", *RUN) == DONE
    expected = figures(Path("out"))
    assert [line["name"] for line in expected] == ["Standard", "Standard-same-steps", "PIDM-paper"]
    weights = read_weights(Path("runs/toy/model.safetensors"))
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    unpack(Path("out/run.tar.xz"), Path("back"))
    assert (Path("back/toy/seen.json")).is_file()

    prepare(tmp_path / "slots", packs, monkeypatch, "train")
    with monkeypatch.context() as patch:
        patch.setattr(State, "update", over_after(2, State.update))
        assert slot() == TERMINATED
    assert [path.name for path in Path("runs/toy_training/checkpoints").iterdir()] == [
        "step_00000003"
    ]
    assert "stopped and saved at step 3" in capsys.readouterr().out
    prepare(tmp_path / "slots", packs, monkeypatch, "test")
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "run", over_after(2, Bench.run))
        assert slot() == TERMINATED
    assert [line["name"] for line in figures(Path("out"))] == ["Standard"]
    came_back = Path("out").resolve()

    prepare(tmp_path / "another machine", packs, monkeypatch, "train", "test")
    for name in ("run", "results"):
        Path(f"packs/{name}.tar.xz").write_bytes((came_back / f"{name}.tar.xz").read_bytes())
    assert slot() == DONE
    assert not Path("runs/toy_training").exists()
    assert figures(Path("out")) == expected
    assert read_weights(Path("runs/toy/model.safetensors")).keys() == weights.keys()


def test_dry_run_says_what_is_here_and_unpacks_nothing(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, packs, monkeypatch, "train")
    assert call("slot", *RUN, "--dry-run") == DONE
    printed = capsys.readouterr().out
    assert "packs/train.tar.xz: here\npacks/test.tar.xz: not here" in printed
    assert not (tmp_path / "data").exists()
    unpack(Path("packs/train.tar.xz"), Path("data/toy"))
    unpack(packs / "test.tar.xz", Path("data/toy"))
    assert call("slot", *RUN, "--dry-run") == DONE
    printed = capsys.readouterr().out
    assert f"{STEPS} steps of 4 pairs" in printed
    assert "to do  PIDM-paper" in printed
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()


def test_pack_says_the_sizes_and_cuts(
    packs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = packs.parent / "toy", tmp_path / "packs"
    assert call("slot", "pack", "--data", data, "--packs", out, "--dry-run") == DONE
    assert "files, 0." in capsys.readouterr().out
    assert not out.exists()
    with pytest.raises(UserError, match="mib 0: a file must have room"):
        call("slot", "pack", "--data", data, "--packs", out, "--mib", 0)
    for wrong, says in (("--mib", "mib 0"), ("--minutes", "minutes -1 is negative")):
        with pytest.raises(UserError, match=says):  # before the minutes are spent
            call("slot", *RUN, wrong, says.split()[1])


def test_a_pack_that_no_slot_would_unpack_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs_module, "LIMIT_BYTES", 1 << 20)
    files = {name: tmp_path / name for name in "ab"}
    for path in files.values():
        path.write_bytes(bytes(500_000))
    write_pack(tmp_path / "fits.tar.xz", files, mib=1)
    assert len(unpack(tmp_path / "fits.tar.xz", tmp_path / "out")) == 2
    files["b"].write_bytes(bytes(600_000))
    with pytest.raises(UserError, match="2 files of over 1 MiB, which no slot unpacks"):
        write_pack(tmp_path / "not.tar.xz", files, mib=1)
    assert not (tmp_path / "not.tar.xz").exists()


def test_what_a_kill_left_does_not_come_back(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    for name in (".tmp-row/deep/result.json", ".tmp-file", "row/result.json"):
        write_bytes(results / name, b"{}")
    _bring_back(out, results, tmp_path / "model", mib=1)
    unpack(out / "results.tar.xz", tmp_path / "back")
    files = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert files == [tmp_path / "back/row/result.json"]


def test_a_pack_that_was_altered_ends_the_slot_before_any_work(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, packs, monkeypatch, "train")
    path = Path("packs/train.tar.xz")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut off") as error:
        call("slot", *RUN)
    assert error.value.code == BAD_DATA
    assert not list(Path("data/toy").glob("*"))


@pytest.mark.parametrize("run", ["", "toy_market"])
def test_a_table_without_a_run_folder_is_refused(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    prepare(tmp_path, packs, monkeypatch, "train")
    config = Path("table.yaml")
    lines = [line for line in config.read_text().splitlines() if not line.startswith("run:")]
    config.write_text("\n".join([*lines, f"run: '{run}'"]))
    with pytest.raises(UserError, match=f"run '{run}' is no path"):
        call("slot", *RUN)
    assert not Path("out").exists()


def test_without_query_and_gallery_it_trains_and_says_what_to_carry(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, packs, monkeypatch, "train")
    with pytest.raises(UserError, match=r"PIDM is trained; .*carry .* test\.tar\.xz") as error:
        call("slot", *RUN)
    assert error.value.code == BAD_DATA
    assert [path.name for path in Path("out").iterdir()] == ["run.tar.xz"]
