"""A selection from a whole augmented folder, with really trained (and bad) judges."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from people import draw_person, planned, render_all

from pidm_core import UserError, encode_png, write_bytes
from pidm_reid import folder, imported, scoring
from pidm_reid.config import NetworkConfig, SelectionConfig, Stage, StudentConfig, decisive
from tools.select_images import main

pytestmark = pytest.mark.usefixtures("small_network")
SETTINGS: dict[str, Any] = {
    "keypoints": None,
    "keep": 0.5,
    "student": StudentConfig(height=32, width=16, batch_size=4, weights="none", precision="fp32"),
    "config": SelectionConfig(network=Stage(steps=2, warmup_steps=1)),
    "seed": 0,
}


def files(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_a_selected_folder_has_the_better_half_of_each_person_and_the_first_stays(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    render_all(planned(market, per_image=3), first)
    before = files(first)
    choices = scoring.select_folder(first, second, **SETTINGS)
    assert files(first) == before
    made = folder.read_augmented(second)
    assert set(made.synthetic) == {choice.file_name for choice in choices if choice.kept}
    assert made.real == folder.read_augmented(first).real
    drawn = Counter(name[:4] for name in folder.read_augmented(first).synthetic)
    assert Counter(name[:4] for name in made.synthetic) == {
        pid: -(-count // 2) for pid, count in drawn.items()
    }
    monkeypatch.setattr(scoring, "choose", None)  # the second time it is only read
    assert scoring.select_folder(first, second, **SETTINGS) == choices
    with pytest.raises(UserError, match=r"selection\.keep: 0.5 -> 0.6"):
        scoring.select_folder(first, second, **{**SETTINGS, "keep": 0.6})


def test_an_interrupted_selection_is_not_trained_on(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    render_all(planned(market), first)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "choose", interrupt)  # while a judge trains
        with pytest.raises(KeyboardInterrupt):
            scoring.select_folder(first, second, **SETTINGS)
    with pytest.raises(UserError, match=r"same tools/select_images\.py again"):
        folder.read_augmented(second)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "append_ledger", interrupt)  # when the choice is made
        with pytest.raises(KeyboardInterrupt):
            scoring.select_folder(first, second, **SETTINGS)
    kept = [choice for choice in scoring.read_choices(second) if choice.kept]
    assert folder.read_augmented(second).missing == len(kept) > 0
    scoring.select_folder(first, second, **SETTINGS)
    assert folder.read_augmented(second).missing == 0


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_share_is_rounded_up_and_no_further(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, int] = {}

    def choose(*_: object, keep: dict[int, int], **__: object) -> object:
        asked.update(keep)
        return [], {}

    monkeypatch.setattr(scoring, "choose", choose)
    render_all(planned(market, ratio=1.0, per_image=25), tmp_path / "made")
    counts = Counter(name[:4] for name in folder.read_augmented(tmp_path / "made").synthetic)
    assert set(counts.values()) == {6 * 25}
    scoring.select_folder(tmp_path / "made", tmp_path / "out", **{**SETTINGS, "keep": 0.14})
    assert set(asked.values()) == {21}  # 0.14 * 150 is 21.000000000000004


def test_a_judge_without_a_batch_is_refused_before_the_folder_is_made(
    market: Path, tmp_path: Path
) -> None:
    render_all(planned(market), tmp_path / "made")
    large = {**SETTINGS, "student": dataclasses.replace(SETTINGS["student"], batch_size=12)}
    with pytest.raises(UserError, match="a judge would learn from are fewer than one batch of 12"):
        scoring.select_folder(tmp_path / "made", tmp_path / "out", **large)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_finished_is_not_judged(market: Path, tmp_path: Path) -> None:
    render_all(planned(market), tmp_path / "made", shard=(1, 2))
    with pytest.raises(UserError, match="9 planned images are not generated yet"):
        scoring.select_folder(tmp_path / "made", tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_imported_images_of_unknown_sources_are_not_judged(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    write_bytes(tmp_path / "gan/0002_c1_gan7.png", encode_png(draw_person(90, 0)))
    list(imported.import_images(work, tmp_path / "gan", tmp_path / "made", real={}))
    with pytest.raises(UserError, match="the source of 1 images"):
        scoring.select_folder(tmp_path / "made", tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_tool_counts_what_was_kept(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render_all(planned(market), tmp_path / "made")
    small = ["--height", "32", "--width", "16", "--batch-size", "4", "--weights", "none"]
    short = ["--selection.network.steps", "1", "--selection.network.warmup-steps", "0"]
    assert main(["--augmented", str(tmp_path / "made"), *small, *short, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "18 generated images to be judged\n8 training image passes before" in printed
    assert not (tmp_path / "made_selected").exists()
    assert main(["--augmented", str(tmp_path / "made"), *small, *short]) == 0
    printed = capsys.readouterr().out
    kept = len(folder.read_augmented(tmp_path / "made_selected").synthetic)
    assert f"{kept} of 18 generated images kept" in printed
    with pytest.raises(UserError, match="keep 2 is not between 0 and 1"):
        main(["--augmented", "x", "--keep", "2"])


def test_loader_workers_decide_what_is_trained_once_they_are_not_the_usual_ones() -> None:
    usual, two = NetworkConfig(), NetworkConfig(workers=2)
    assert "workers" not in decisive(usual)
    assert decisive(two) == {**decisive(usual), "workers": 2}
    assert scoring.asked_of(two, SelectionConfig())["workers"] == 2
