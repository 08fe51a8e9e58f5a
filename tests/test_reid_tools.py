"""The commands of the re-ID side: what they print, and one clear line for every wrong input."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from people import TINT, make_market, planned, render_all

from pidm_core import (
    BAD_DATA,
    DONE,
    SKIPPED,
    USAGE,
    UserError,
    find_keypoints,
    read_weights,
    write_bytes,
)
from pidm_reid import experiment, finetune, folder, generators, report, table, unfinished
from pidm_reid.generators import newest_run
from pidm_reid.rows import Cell

ROOT = Path(__file__).parents[1]


SMALL = ["--height", 32, "--width", 16, "--batch-size", 12, "--weights", "none"]


def tool(name: str) -> ModuleType:
    """The module tools/NAME.py."""
    return importlib.import_module(f"tools.{name}")


def call(name: str, *arguments: object) -> int:
    """Run a tool's main in this process; its exit code."""
    code: int = tool(name).main([str(argument) for argument in arguments])
    return code


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a tinting generator in PIDM's place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generators, "pidm", lambda *_, **__: TINT)
    monkeypatch.setattr(generators, "newest_run", lambda *_: "toy_market")


def test_synthesize_makes_a_folder_and_says_what_is_next(
    market: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("synthesize", "--data", market, "--ratio", 0.5) == DONE
    printed = capsys.readouterr().out
    out = f"data/{market.name}_pidm50"
    assert "36 images of 6 people, 18 of them kept (50%), 18 to be generated" in printed
    assert f"python tools/train_reid.py --augmented {out}" in printed
    assert len(folder.read_augmented(out).synthetic) == 18
    assert folder.spent(Path(out))["synthesis_seconds"] > 0


@pytest.mark.usefixtures("small_network")
def test_the_next_command_for_drawn_people_trains(
    drawn_people: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = replace(TINT, render=lambda sources, keypoints, seeds: sources)
    monkeypatch.setattr(generators, "pidm", lambda *_, **__: copies)
    assert (
        call("synthesize", "--data", drawn_people.parent, "--ratio", 0.4, "--out", "made") == DONE
    )
    python, path, *flags = capsys.readouterr().out.splitlines()[-1].split()
    assert (python, path) == ("python", "tools/train_reid.py")
    assert call("train_reid", *flags, "--standard.steps", 1, "--finetune.steps", 1) == DONE
    assert "fine-tuned: 64 images, 1 iterations" in capsys.readouterr().out


def test_dry_run_says_the_cost_and_creates_nothing(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("synthesize", "--data", market, "--ratio", 0.5, "--dry-run") == DONE
    assert "18 of 18 images to generate, about 0.0 minutes here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_sees_that_no_batch_is_filled(market: Path) -> None:
    call("synthesize", "--data", market, "--ratio", 0.5, "--out", "a")
    with pytest.raises(UserError, match="18 training images are fewer than one batch of 19"):
        call("train_reid", "--augmented", "a", "--batch-size", 19, "--dry-run")


def test_amount_is_per_image_or_a_total(market: Path) -> None:
    call("synthesize", "--data", market, "--per-image", 2, "--ratio", 0.5, "--out", "a")
    call("synthesize", "--data", market, "--fill-to", 25, "--ratio", 0.5, "--out", "b")
    assert len(folder.read_augmented("a").synthetic) == 36
    assert len(folder.read_augmented("b").synthetic) == 7


def test_a_plan_without_images_is_refused_with_what_to_add(market: Path, tmp_path: Path) -> None:
    for flags in (["--ratio", 1.0], ["--ratio", 0.5, "--fill-to", 18]):
        with pytest.raises(UserError, match=r"nothing to generate beside .* add --per-image 1, or"):
            call("synthesize", "--data", market, *flags, "--out", "a")
    assert not list(tmp_path.iterdir())


def test_a_finished_folder_is_said_to_be_complete(
    market: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("a: 18 images generated, part 1 of 1 is complete", "complete already (18 images)"):
        assert call("synthesize", "--data", market, "--ratio", 0.5, "--out", "a") == DONE
        assert said in capsys.readouterr().out


def test_policies_are_given_as_flags(market: Path) -> None:
    flags = ["--pose-policy", "balanced", "--source-policy", "cameras", "--same-scale", 9]
    assert call("synthesize", "--data", market, "--ratio", 0.5, "--out", "a", *flags) == DONE
    assert folder.read_augmented("a").split["policy"] == {
        "pose_policy": "balanced",
        "same_scale": 9.0,
        "source_policy": "cameras",
    }


def test_broken_image_is_listed_and_the_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    market = make_market(tmp_path / "people")
    victim = sorted((market / "market1501/bounding_box_train").iterdir())[4]
    victim.write_bytes(b"")
    assert call("synthesize", "--data", market, "--ratio", 1, "--per-image", 1) == SKIPPED
    assert f"left out: {victim}: the file is empty" in capsys.readouterr().err


def test_images_of_another_method_are_taken_over(market: Path, tmp_path: Path) -> None:
    from people import draw_person

    from pidm_core import encode_png, write_bytes

    write_bytes(tmp_path / "gan/0002_c1_gan.png", encode_png(draw_person(2, 0)))
    assert call("synthesize", "--data", market, "--import-from", "gan", "--out", "o") == DONE
    assert folder.read_augmented("o").synthetic == ("0002_c1_gan_pidm0000.jpg",)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ratio", "40"], USAGE, "did you mean 0.4?"),
        (["--ratio", "half"], USAGE, "ratio: expected float"),
        (["--ratoi", "0.4"], USAGE, "--ratio"),
        (["--sampler", "dddim"], USAGE, "none of ddim"),
        (["--shard", "17/16"], USAGE, "shard '17/16' is not K/N"),
        (["--fill-to", "most"], USAGE, "fill-to 'most' is neither"),
        (["--per-image", "-1"], USAGE, "per-image -1 is negative"),
        (["--pose-policy", "best"], USAGE, "pose_policy: 'best' is none of uniform, balanced"),
        (["--same-scale", "0.8"], USAGE, "same-scale 0.8 is not a factor of 1 or more"),
        (["--same-scale", "2", "--import-from", "x"], USAGE, "leave out the policies"),
        (["--shard", "1/2", "--import-from", "x"], USAGE, "leave out the policies"),
        (["--run", "toy_market", "--import-from", "x"], USAGE, "leave out the policies"),
        (["--data", "nowhere"], BAD_DATA, "nowhere: no such folder"),
        (["--keypoints", "nowhere.csv"], BAD_DATA, "nowhere.csv: no such file"),
    ],
)
def test_wrong_arguments_of_synthesize(
    market: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    with pytest.raises(UserError) as error:
        call("synthesize", "--data", market, *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.code == code
    assert not list(tmp_path.iterdir())


def test_joints_of_other_images_are_refused(tmp_path: Path, market: Path) -> None:
    other = make_market(tmp_path / "other", train=2, cameras=6, shots=1)
    csv = other / "market1501/market-annotation-train.csv"
    text = csv.read_text().replace("0002_c", "0999_c").replace("0004_c", "0998_c")
    csv.write_text(text)
    with pytest.raises(UserError, match="has joints of none of the") as error:
        call("synthesize", "--data", market, "--keypoints", csv)
    assert error.value.code == BAD_DATA


def test_wrong_name_pattern_is_refused_with_the_file(tmp_path: Path) -> None:
    market = make_market(tmp_path / "people")
    train = market / "market1501/bounding_box_train"
    (train / "0002_c1s1_000000_00.jpg").rename(train / "alice.jpg")
    with pytest.raises(UserError, match=r"alice\.jpg: the name must begin with") as error:
        call("synthesize", "--data", market)
    assert error.value.code == BAD_DATA


def test_bundled_model_without_drawn_people_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"make_toy_market\.py --preset demo --out data/toy_market"):
        call("synthesize")


def test_newest_run_is_taken_with_its_data(tmp_path: Path) -> None:
    for k, name in enumerate(("old", "new", "unfinished")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(f"data: data/{name}\n")
        if name != "unfinished":
            model = tmp_path / "runs" / name / "model/model.safetensors"
            write_bytes(model, b"")
            os.utime(model, (k, k))
    assert newest_run() == "runs/new"
    assert generators.run_data("runs/new") == ("data/new", "")


def test_a_run_that_is_not_there_is_said_before_its_data_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs/markt1501: no trained model there"):
        call("synthesize", "--run", "runs/markt1501")
    with pytest.raises(UserError, match="does not say which data it was trained on"):
        call("synthesize", "--run", "toy_market_student")


def test_broken_image_in_a_table_is_listed_and_the_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    market = make_market(tmp_path / "people")
    victim = sorted((market / "market1501/bounding_box_train").iterdir())[4]
    victim.write_bytes(b"")
    done = {"mAP": 0.5, "cmc": dict.fromkeys(("1", "5", "10"), 0.5), "left_out": [f"{victim}: bad"],
            "counts": {"queries": 9, "unmatched": 2}}  # fmt: skip
    cell = Cell("Standard", 1.0, 0)
    monkeypatch.setattr(experiment, "run_table", lambda _: iter([(cell, done, True)]))
    monkeypatch.setattr(table, "write_table", lambda *_, **__: [])
    monkeypatch.setattr(experiment, "draw_sheet", lambda _: None)
    monkeypatch.setattr(report, "write_table_report", lambda *_, **__: Path("report.html"))
    assert call("reproduce_table", "reid", "--data", market) == SKIPPED
    printed = capsys.readouterr()
    assert f"left out: {victim}: bad" in printed.err
    assert "2 of 9 queries have no match and count in no figure" in printed.out
    assert "1 of 12 cells" in printed.out


@pytest.mark.usefixtures("small_network")
def test_train_reid_prints_both_results(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render_all(planned(market), tmp_path / "made")
    small: list[Any] = [*SMALL]
    short = ["--standard.steps", 1, "--finetune.steps", 1, "--out", "w.safetensors"]
    assert call("train_reid", "--augmented", "made", *small, *short, "--dry-run") == DONE
    printed = capsys.readouterr().out
    assert "18 real, 18 generated images\n24 training image passes, about 0.0 minutes" in printed
    assert not list(tmp_path.glob("*.safetensors"))
    assert call("train_reid", "--augmented", "made", *small, *short) == DONE
    printed = capsys.readouterr().out
    assert "Standard: 18 images, 1 iterations" in printed
    assert "fine-tuned: 36 images, 1 iterations" in printed
    assert printed.count("Rank-1  : ") == printed.count("mAP: ") == 2
    standard, final = (
        read_weights(tmp_path / name) for name in ("w_standard.safetensors", "w.safetensors")
    )
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "w_standard.safetensors", "w.safetensors"
    }  # fmt: skip
    assert standard.keys() == final.keys()
    assert not torch.equal(standard["conv1.weight"], final["conv1.weight"])


@pytest.mark.usefixtures("small_network")
def test_images_that_are_not_generated_yet_are_said(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render_all(planned(market), tmp_path / "made", shard=(1, 2))
    small: list[Any] = [*SMALL]
    short = ["--standard.steps", 1, "--finetune.steps", 1]
    assert call("train_reid", "--augmented", "made", *small, *short) == SKIPPED
    assert "left out: 9 planned images are not generated yet" in capsys.readouterr().err


@pytest.mark.usefixtures("small_network")
def test_an_interrupted_train_reid_goes_on(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_all(planned(market), tmp_path / "made")
    flags: list[Any] = [*SMALL]
    flags += ["--standard.steps", 1, "--finetune.steps", 2, "--augmented", "made"]
    assert call("train_reid", *flags, "--out", "whole.safetensors") == DONE
    monkeypatch.setattr(unfinished, "EVERY_S", 0.0)
    steps, step = [0], finetune.FastSoftmaxEngine.forward_backward

    def second_is_cut(self: Any, data: Any) -> dict[str, float]:
        steps[0] += 1
        if steps[0] == 2:
            raise KeyboardInterrupt
        return step(self, data)

    monkeypatch.setattr(finetune.FastSoftmaxEngine, "forward_backward", second_is_cut)
    with pytest.raises(KeyboardInterrupt, match="fine-tuned: nothing of it is kept"):
        call("train_reid", *flags, "--out", "w.safetensors")
    assert call("train_reid", *flags, "--out", "w.safetensors") == DONE
    assert steps[0] == 4  # Standard's one, one that was cut, the two of the fine-tuning
    whole, again = (read_weights(tmp_path / f"{name}.safetensors") for name in ("whole", "w"))
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    assert not list(tmp_path.glob("*unfinished*"))
    steps[0] = 0
    with pytest.raises(KeyboardInterrupt, match=r"without --out FILE\.safetensors nothing is kept"):
        call("train_reid", *flags)


@pytest.mark.usefixtures("small_network")
def test_a_finished_train_reid_prints_its_results_again_and_refuses_others(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render_all(planned(market), tmp_path / "made", shard=(1, 2))
    flags: list[Any] = [*SMALL]
    flags += ["--standard.steps", 1, "--finetune.steps", 1, "--augmented", "made"]
    flags += ["--out", "w.safetensors"]
    assert call("train_reid", *flags) == SKIPPED
    figures = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    written = Path("w.safetensors").stat().st_mtime_ns
    assert call("train_reid", *flags) == SKIPPED
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "%" in line] == figures
    assert "w.safetensors: trained already" in printed
    with pytest.raises(
        UserError, match=r"other settings or data \(seed: 0 -> 1\); .* remove w\.json and w"
    ):
        call("train_reid", *flags, "--seed", 1)
    render_all(planned(market), tmp_path / "made")
    with pytest.raises(UserError, match=r"generated: 9 images, .* -> 18 images"):
        call("train_reid", *flags, "--dry-run")
    assert Path("w.safetensors").stat().st_mtime_ns == written
    Path("w.json").unlink()
    with pytest.raises(UserError, match=r"no w\.json says what it was trained on"):
        call("train_reid", *flags)
    Path("w.safetensors").unlink()  # as the refusal says
    assert call("train_reid", *flags, "--seed", 1) == DONE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "seed -1 is not"),
        (["--seed", "4294967296"], "is not between 0"),
        (["--out", "w.pth"], "end in .safetensors"),
    ],
)
def test_wrong_arguments_of_train_reid(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call("train_reid", "--augmented", "made", *arguments)
    assert error.value.code == USAGE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures"], "'pictures' is not a table"),
        (["reid", "--rows", "GAN"], "'GAN' is none of"),
        (["reid", "--ratios", "40"], "did you mean 0.4?"),
        (["reid", "--student.standard.stepz", "3"], "student.standard.steps"),
        (["reid", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_arguments_of_reproduce_table(
    market: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        call("reproduce_table", *arguments, "--data", market)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_misspelt_key_in_a_file_is_named_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("student:\n  finetune:\n    lerning_rate: 1e-4\n")
    with pytest.raises(UserError, match=r"my\.yaml: .*unknown key 'lerning_rate'") as error:
        call("reproduce_table", "reid", "--config", "my.yaml")
    assert error.value.code == USAGE


def test_development_split_is_written_and_counted(
    market: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("development_split", "--data", market, "--out", "dev") == DONE
    assert "of    5 people" in capsys.readouterr().out
    assert len(folder.read_people("dev", "query")) == 3
    with pytest.raises(UserError, match="exists already"):
        call("development_split", "--data", market, "--out", "dev")


def test_a_development_split_without_joints_says_how_to_make_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    market = make_market(tmp_path / "people")
    (market / "market1501/market-annotation-train.csv").rename(tmp_path / "joints.csv")
    assert call("development_split", "--data", market, "--out", "dev") == DONE
    printed = capsys.readouterr()
    assert "no joints to take along" in printed.err
    *_, extract, train = printed.out.splitlines()
    assert extract == (
        "  python tools/extract_poses.py --data dev --out dev/market-annotation-train.csv"
    )
    assert (ROOT / train.split("--config ")[1].split()[0]).is_file()
    (tmp_path / "joints.csv").rename("dev/market-annotation-train.csv")  # as that tool writes it
    assert find_keypoints("dev").is_file()


def test_too_few_people_are_not_divided(tmp_path: Path) -> None:
    market = make_market(tmp_path / "people", train=1)
    with pytest.raises(UserError, match="has too few people to divide"):
        call("development_split", "--data", market, "--out", "dev")
    assert not Path("dev").exists()


def test_a_test_image_among_the_training_images_is_refused(tmp_path: Path) -> None:
    market = make_market(tmp_path / "people")
    train, query = (market / "market1501" / part for part in (folder.TRAIN, folder.QUERY))
    min(query.iterdir()).write_bytes(min(train.iterdir()).read_bytes())
    with pytest.raises(UserError, match="1 images of query and gallery are in the training set"):
        call("synthesize", "--data", market, "--ratio", 0.5, "--dry-run")


def test_a_dry_run_says_that_the_folder_is_of_another_configuration(market: Path) -> None:
    assert call("synthesize", "--data", market, "--ratio", 0.5, "--out", "o") == DONE
    with pytest.raises(UserError, match="was made with another configuration"):
        call("synthesize", "--data", market, "--ratio", 0.4, "--out", "o", "--dry-run")


def test_errors_are_one_line_and_the_exit_code() -> None:
    command = [sys.executable, str(ROOT / "tools/synthesize.py"), "--ratio", "40"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == USAGE
    assert ran.stderr == "error: ratio 40 is not between 0 and 1; did you mean 0.4?\n"


@pytest.mark.parametrize(
    "name", ["synthesize", "train_reid", "reproduce_table", "development_split"]
)
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        f"import sys; sys.argv = ['{name}', '--help']; sys.path.insert(0, 'tools')\n"
        f"import {name}\n"
        f"try: {name}.main()\nexcept SystemExit: pass\n"
        "print([n for n in ('torch', 'numpy', 'PIL', 'yaml', 'scipy') if n in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "example:" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"
