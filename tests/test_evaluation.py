"""Folders of generated images: names, protocols, what is left out, the tools and the table."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pidm_core import (
    BAD_DATA,
    DONE,
    ENVIRONMENT,
    SKIPPED,
    USAGE,
    UserError,
    encode_png,
    evaluation,
    feature_networks,
    image_table,
    load_image,
    read_json,
    write_bytes,
    write_keypoints,
)
from pidm_core.config import ImageSettings
from pidm_core.evaluation import Judges, Report, evaluate, read_pictures
from pidm_core.feature_metrics import frechet_distance
from pidm_core.feature_networks import Extractor, Perceptual
from pidm_core.image_metrics import PRESETS, bring_to, ssim

ROOT = Path(__file__).parents[1]
SIZE = (64, 56)  # px
TARGETS = [f"{pid:04d}_c{camera}s1_000000_00" for pid in (1, 2, 3) for camera in (1, 2)]


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (H, W, 3): a smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (size[1], size[0])))


def write(folder: Path, names: list[str], first_seed: int, size: tuple[int, int] = SIZE) -> Path:
    for k, name in enumerate(names):
        write_bytes(folder / name, encode_png(picture(first_seed + k, size)))
    return folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """real (5 images), targets (6) and generated (each target once), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write(tmp_path / "real", [f"{k}.png" for k in range(5)], 0)
    write(tmp_path / "targets", [f"{name}.png" for name in TARGETS], 10)
    names = [f"{a}_2_{b}_vis.png" for a, b in zip(TARGETS[::-1], TARGETS, strict=True)]
    write(tmp_path / "made", names, 20)
    return tmp_path


def settings(**changes: str) -> ImageSettings:
    return dataclasses.replace(ImageSettings(real="real", targets="targets"), **changes)  # type: ignore[arg-type]


class Colours:
    """A network in Inception's place: mean colours, and how many images it has seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images.shape[:3])
        return np.asarray(images.mean((1, 2)), dtype=np.float32)

    def judges(self, size: tuple[int, int] | None = (256, 176)) -> Judges:
        lpips = Perceptual("AlexNet", "b" * 64, lambda x, y: abs(x - y).mean((1, 2, 3)))
        return Judges(Extractor("colours", "a" * 64, size, ("FID", "KID"), self), lpips, [])


def values(report: Report) -> dict[str, float]:
    return {figure.name: figure.value for figure in report.figures}


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("0002_c1s1_000000_00_2_0001_c2s1_000000_00_vis.png", "0002_c1s1_000000_00"),
        ("0002_c1s1_000000_00_2_0001_c2s1_000000_00_vis_seed3.png", "0002_c1s1_000000_00"),
        ("0002_c1s1_000000_00.jpg___0001_c2s1_000000_00.jpg_vis.jpg", "0002_c1s1_000000_00"),
        ("0002_c1s1_000000_00_to_0001_c2s1_000000_00.png", "0002_c1s1_000000_00"),
        ("a_2_b_2_0001_c2s1_000000_00_vis.png", "a_2_b"),
        ("img_visit_3_2_0001_c2s1_000000_00_vis_1.png", "img_visit_3"),
    ],
)
def test_a_name_tells_source_and_target(folders: Path, name: str, source: str) -> None:
    write(folders / "other", [name], 0)
    (found,) = read_pictures("other", "targets")
    assert found.source == source
    assert found.target == Path("targets/0001_c2s1_000000_00.png")


def test_a_list_names_targets_where_names_do_not(folders: Path) -> None:
    write(folders / "other", ["x.png", "y.png"], 0)
    (folders / "list.csv").write_text(
        "generated,target\r\nx.png,targets/" + f"{TARGETS[0]}.png\r\n"
    )
    x, y = read_pictures("other", "list.csv")
    assert x.target == Path(f"targets/{TARGETS[0]}.png")
    assert y.target is None
    (folders / "list.csv").write_text("from,to\n")
    with pytest.raises(UserError, match="'generated,target'"):
        read_pictures("other", "list.csv")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"generated,target\ncaf\xe9.png,a.png\n", "list.csv: not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "list.csv: not UTF-8 text"),
        (b"generated,target\nx.png,\n", "list.csv:2: a cell is empty"),
        (b"generated,target\nx.png\n", "list.csv:2: a cell is empty"),
        (b"generated,target\nx.png,a.png\nx.png,b.png\n", "list.csv:3: x.png stands twice"),
        (b"generated,target\n,a.png\n", "list.csv:2: a cell is empty"),
        (b"generated,target\nx.png,../a.png\n", r"list.csv:2: '\.\./a.png' leaves"),
        (b"generated,target\nx.png,/etc/a.png\n", "list.csv:2: '/etc/a.png' leaves"),
        (b"generated,target\n" + b"x" * 200_000 + b",a\n", "list.csv: not a CSV"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(folders: Path, data: bytes, why: str) -> None:
    (folders / "list.csv").write_bytes(data)
    with pytest.raises(UserError, match=why) as caught:
        read_pictures("made", "list.csv")
    assert caught.value.code == BAD_DATA
    assert "\n" not in str(caught.value)


def test_targets_may_lie_in_folders_of_their_own_under_names_of_their_own(folders: Path) -> None:
    write(folders / "other", [f"a_2_{TARGETS[0]}_vis.png"], 0)
    write(folders / "nested/WOMEN/id_1", [f"{TARGETS[0]}.png", "01_1_front.png"], 0)
    write(folders / "nested/MEN/id_2", ["01_1_front.png"], 0)  # nobody's target
    (found,) = read_pictures("other", "nested")
    assert found.target == Path(f"nested/WOMEN/id_1/{TARGETS[0]}.png")
    write(folders / "nested/MEN/id_3", [f"{TARGETS[0]}.jpg"], 0)
    with pytest.raises(
        UserError, match=r"WOMEN/id_1/.*: has the same name as .*MEN/id_3/"
    ) as caught:
        read_pictures("other", "nested")
    assert caught.value.code == BAD_DATA


# ---------------------------------------------------------------- figures


def test_pair_figures_follow_the_preset(folders: Path) -> None:
    pictures = read_pictures("made", "targets")
    report = evaluate(pictures, settings(), Colours().judges())
    made = np.stack([picture(20 + k) for k in range(6)])
    true = np.stack([picture(10 + k) for k in range(6)])
    spread = np.array([int(x.max()) - int(x.min()) for x in made]) / 255
    brought = [cv2.resize(x.astype(np.float32), (176, 256)) / 255 for x in (*made, *true)]
    assert values(report)["SSIM"] == pytest.approx(ssim(made, true).mean())
    sigma_12 = ssim(made, true, sigma=1.2, data_range=spread).mean()
    assert values(report)["SSIM_256"] == pytest.approx(sigma_12)
    expected = np.mean([abs(a - b).mean() for a, b in zip(brought[:6], brought[6:], strict=True)])
    assert values(report)["LPIPS"] == pytest.approx(expected, rel=1e-5)
    other = evaluate(pictures, settings(preset="gfla"), Colours().judges(None))
    sigma_15 = ssim(made, true, sigma=1.5, data_range=spread).mean()
    assert values(other)["SSIM_256"] == pytest.approx(sigma_15)
    how = {figure.name: figure.how for figure in (*report.figures, *other.figures[2:3])}
    assert "preset gfla, 64x56 px, AlexNet bbbbbbbb, 6 of 6 images" in how["LPIPS"]
    assert "preset pidm, 256x176 px, colours aaaaaaaa, 6 generated of 6, 5 real" in how["FID"]
    assert "fewer than 2,048" in how["FID"]
    assert report.left_out == []


FLAT_C = (0.01 / 255) ** 2  # of a range of one grey level


@pytest.mark.parametrize(
    ("made", "true", "expected"),
    [(0, 0, 1), (200, 200, 1), (255, 0, FLAT_C / (1 + FLAT_C))],  # (2 a b + c) / (a^2 + b^2 + c)
)
def test_an_image_of_one_colour_has_an_ssim(
    folders: Path, made: int, true: int, expected: float
) -> None:
    for path, grey in ((f"flat/a_2_{TARGETS[0]}_vis.png", made), (f"{TARGETS[0]}.png", true)):
        write_bytes(folders / "one" / path, encode_png(np.full((*SIZE, 3), grey, np.uint8)))
    report = evaluate(read_pictures("one/flat", "one"), settings(), Colours().judges())
    assert values(report)["SSIM_256"] == pytest.approx(expected, abs=1e-12)


def test_set_figures_are_those_of_the_features(folders: Path) -> None:
    network = Colours()
    report = evaluate(read_pictures("made", "targets"), settings(), network.judges())
    made, real = (
        np.stack([bring_to(picture(first + k), (256, 176)).mean((0, 1)) for k in range(count)])
        for first, count in ((20, 6), (0, 5))
    )
    assert values(report)["FID"] == pytest.approx(frechet_distance(real, made), rel=1e-4)
    assert {"KID", "precision", "recall"} < set(values(report))
    assert "diversity" not in values(report)


def test_real_images_are_those_of_all_folders_below(folders: Path) -> None:
    for k in range(5):
        write(folders / f"nested/id_{k}", ["01_1_front.png"], k)  # those of `real`
    pictures = read_pictures("made", "targets")
    nested, flat = (
        evaluate(pictures, settings(real=real), Colours().judges()) for real in ("nested", "real")
    )
    assert values(nested) == values(flat)
    assert "5 real" in {figure.name: figure.how for figure in nested.figures}["FID"]


def test_the_recipe_for_the_papers_real_images_cuts_and_leaves_out_the_test_images(
    folders: Path,
) -> None:
    home = folders / "data/deepfashion"
    image = np.full((256, 256, 3), 255, np.uint8)
    image[:, 40:216] = picture(1, (256, 176))
    for view in ("01_1_front", "02_2_side"):
        write_bytes(home / f"img/WOMEN/Tees_Tanks/id_00000001/{view}.png", encode_png(image))
    (home / "train.lst").write_text("fashionWOMENTees_Tanksid0000000101_1front.jpg\n")
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/images.md").read_text(), re.DOTALL)
    exec(recipe, {})
    (found,) = (folders / "data/deepfashion_train").iterdir()
    assert found.name == "fashionWOMENTees_Tanksid0000000101_1front.png"
    assert np.array_equal(load_image(found), picture(1, (256, 176)))


def test_several_images_of_a_condition_give_diversity(folders: Path) -> None:
    name = f"{TARGETS[0]}_2_{TARGETS[1]}_vis_{{}}.png"
    write(folders / "seeds", [name.format(k) for k in range(3)], 30)
    report = evaluate(read_pictures("seeds", "targets"), settings(), Colours().judges())
    colours = [bring_to(picture(30 + k), (256, 176)).mean((0, 1)) for k in range(3)]
    pairs = [np.linalg.norm(colours[i] - colours[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert values(report)["diversity"] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_a_last_partial_batch_is_dropped_but_not_a_first(folders: Path) -> None:
    assert [PRESETS["pidm"].whole(n) for n in (5, 63, 64, 127, 128, 12_000)] == [
        5, 63, 64, 64, 128, 11_968,
    ]  # fmt: skip
    names = [f"{k:03d}_2_{TARGETS[0]}_vis.png" for k in range(70)]
    write(folders / "many", names, 0)
    network = Colours()
    report = evaluate(read_pictures("many", "targets"), settings(), network.judges())
    assert network.seen == [(64, 256, 176), (5, 256, 176)]
    how = {figure.name: figure.how for figure in report.figures}
    assert "64 of 70 images" in how["LPIPS"]
    assert "70 images" in how["SSIM"]
    assert "64 generated of 70" in how["FID"]


def test_features_of_the_real_images_are_kept_until_something_changes(folders: Path) -> None:
    def counts(size: tuple[int, int], expected: list[int]) -> None:
        network = Colours()
        evaluate(read_pictures("made", "targets"), settings(), network.judges(size))
        assert [shape[0] for shape in network.seen] == expected

    counts((256, 176), [6, 5])
    counts((256, 176), [6])
    counts((128, 64), [6, 5])
    write(folders / "real", ["0.png"], 99)
    counts((256, 176), [6, 5])
    for path in (folders / "results/features").iterdir():
        path.write_bytes(path.read_bytes()[:-8])
    counts((256, 176), [6, 5])


def test_unequal_sizes_are_refused_and_small_images_have_no_ssim(folders: Path) -> None:
    write(folders / "made", [f"a_2_{TARGETS[0]}_vis.png"], 0, (64, 52))
    with pytest.raises(UserError, match="one size first") as caught:
        evaluate(read_pictures("made", "targets"), settings(), Colours().judges())
    assert caught.value.code == BAD_DATA
    for folder in ("targets", "small"):
        write(
            folders / "tiny" / folder,
            [f"a_2_{TARGETS[0]}_vis.png", f"{TARGETS[0]}.png"],
            0,
            (48, 24),
        )
    report = evaluate(read_pictures("tiny/small", "tiny/targets"), settings(), Colours().judges())
    assert "SSIM" not in values(report)
    assert "SSIM: images of 48x24 px are smaller than its window of 51 px" in report.left_out
    for folder in ("targets", "small"):
        names = [f"a_2_{TARGETS[0]}_vis.png", f"{TARGETS[0]}.png"]
        write(folders / "least" / folder, names, 0, (16, 8))
    report = evaluate(read_pictures("least/small", "least/targets"), settings(), Colours().judges())
    assert not {"SSIM", "SSIM_256"} & set(values(report))
    assert "SSIM: images of 16x8 px are smaller than its window of 9 px" in report.left_out


# ---------------------------------------------------------------- the tools


def tool(name: str) -> Callable[..., int]:
    """The main of tools/NAME.py."""
    module = importlib.import_module(f"tools.{name}")
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_without_weights_the_tool_names_the_files_and_gives_the_rest(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_images = tool("evaluate_images")
    options = ("--generated", "made", "--real", "real", "--targets", "targets", "--json", "x.json")
    assert evaluate_images(*options) == SKIPPED
    out, err = capsys.readouterr()
    assert out.startswith("SSIM: ")
    assert "preset pidm, 64x56 px, uniform window of 51 px, 6 images" in out
    assert "FID:" not in out
    assert "put torchvision's inception_v3_google-0cc3c7bd.pth into" in err
    assert "put torchvision's alexnet-owt-7be5be79.pth into" in err
    assert err.count("or name its folder with --weights") == 2
    assert "FID, KID (Inception-v3): " in err
    assert err.count("--features reid --weights FILE") == 1
    assert err.count("\n") == 2
    assert [figure["name"] for figure in read_json("x.json")["figures"]] == ["SSIM", "SSIM_256"]


def test_images_without_a_target_are_named(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "find_judges", lambda _: Colours().judges())
    write(folders / "made", ["a_2_nobody_vis.png", "b.png"], 0)
    evaluate_images = tool("evaluate_images")
    options = ("--generated", "made", "--real", "real")
    assert evaluate_images(*options, "--targets", "targets") == SKIPPED
    assert capsys.readouterr().err.splitlines() == [
        "left out: made/a_2_nobody_vis.png: no target of its name in targets; "
        "it counts in FID and KID alone",
        "left out: made/b.png: no target of its name in targets; it counts in FID and KID alone",
    ]
    assert evaluate_images(*options) == SKIPPED  # nobody's target lies in the folder of real ones
    out, err = capsys.readouterr()
    assert out.startswith("FID: ")
    assert err.count("\n") == 1
    assert "--targets" in err


def test_a_reid_network_gives_a_distance_that_is_not_fid(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(path: Path, size: tuple[int, int]) -> Extractor:
        assert (path, size) == (Path("student.safetensors"), (64, 32))
        return Extractor("re-ID ResNet50", "c" * 64, size, ("not FID", "not KID"), Colours())

    monkeypatch.setattr(feature_networks, "resnet50", build)
    options = ("--features", "reid", "--weights", "student.safetensors", "--reid-size", "64,32")
    tool("evaluate_images")(
        "--generated", "made", "--real", "real", "--targets", "targets", *options
    )
    assert "64x32 px, re-ID ResNet50 cccccccc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why", "code"),
    [
        (("--real", "real"), "--generated DIR", USAGE),
        (("--generated", "made"), "--real DIR", USAGE),
        (("--generated", "made", "--real", "real", "--features", "reid"), "--weights FILE", USAGE),
        (
            ("--generated", "made", "--real", "real", "--preset", "pdim"),
            "none of pidm, gfla",
            USAGE,
        ),
        (
            ("--generated", "made", "--real", "real", "--reid-size=-1,64"),
            "reid_size: .-1, 64. is not a height",
            USAGE,
        ),
        (("--generated", "empty", "--real", "real"), "empty: no images", BAD_DATA),
        (("--generated", "nowhere", "--real", "real"), "nowhere: no such folder", BAD_DATA),
        (("--generated", "made", "--real", "real"), "alexnet-owt-7be5be79.pth", ENVIRONMENT),
        (
            ("--generated", "made", "--real", "real", "--features", "reid", "--weights", "x.pth"),
            "x.pth: no such weight file",
            ENVIRONMENT,
        ),
    ],
)
def test_bad_input_is_one_line(
    folders: Path, options: tuple[str, ...], why: str, code: int
) -> None:
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match=why) as caught:
        tool("evaluate_images")(*options)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [-1, 0])
def test_a_grid_has_rows(folders: Path, rows: int) -> None:
    options = ("--real", "real", "--methods", "PIDM=made", "--grid-rows", rows)
    with pytest.raises(UserError, match=f"grid_rows: {rows} is no number") as caught:
        tool("reproduce_table")("images", *options)
    assert caught.value.code == USAGE


def test_the_table_has_the_paper_beside_and_measures_only_what_is_new(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_table, "find_judges", lambda _: Colours().judges())
    write(folders / "ours", [f"{a}_2_{a}_vis.png" for a in TARGETS], 10)  # equal to the targets
    (folders / "table.yaml").write_text(
        "name: market\npublished: market1501\nreal: real\ntargets: targets\n"
        "methods:\n  PIDM: made\n  ours: ours\n"
    )
    reproduce_table = tool("reproduce_table")
    assert reproduce_table("images", "--config", "table.yaml", "--dry-run") == DONE
    assert "ours: 6 images, 6 with a target in targets" in capsys.readouterr().out
    assert not (folders / "results").exists()
    assert reproduce_table("images", "--config", "table.yaml") == DONE
    capsys.readouterr()
    rows = list(csv.DictReader(Path("results/market/table.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["PIDM", "ours"]
    assert [row["FID paper"] for row in rows] == ["14.451", ""]
    assert float(rows[1]["SSIM"]) == pytest.approx(1)
    assert (folders / "results/market/PIDM/result.json").is_file()
    markdown = (folders / "results/market/table.md").read_text()
    assert markdown.startswith(
        "| method | images | SSIM | paper | SSIM_256 | LPIPS | paper | FID |"
    )
    assert "- PIDM, FID: preset pidm, 256x176 px, colours aaaaaaaa" in markdown

    write(folders / "ours", [f"{TARGETS[0]}_2_{TARGETS[0]}_vis.png"], 99)
    reproduce_table("images", "--config", "table.yaml")
    printed = capsys.readouterr().out
    assert "PIDM (done before)" in printed
    assert "ours (done before)" not in printed


def test_the_grid_shows_source_pose_truth_and_every_method(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_table, "find_judges", lambda _: Colours().judges())
    pose = np.full((18, 2), 20, dtype=np.float32)
    write_keypoints("poses.csv", {f"{name}.jpg": pose for name in TARGETS[:2]})
    options = ("--real", "real", "--targets", "targets", "--methods", "PIDM=made", "--grid")
    reproduce_table = tool("reproduce_table")
    reproduce_table("images", *options, "--keypoints", "poses.csv")
    grid = load_image("results/images/grid.png")
    assert grid.shape == (20 + 2 * 260, 4 * (224 + 4), 3)
    # sorted by source: the first is the pair of the second target
    np.testing.assert_allclose(grid[20 + 128, 112], picture(14)[32, 28], atol=12)
    np.testing.assert_allclose(grid[20 + 128, 2 * 228 + 112], picture(11)[32, 28], atol=12)
    np.testing.assert_allclose(grid[20 + 128, 3 * 228 + 112], picture(21)[32, 28], atol=12)
    write_keypoints("poses.csv", {"other.jpg": pose})
    with pytest.raises(UserError, match="no pair has an image of every method"):
        reproduce_table("images", *options, "--keypoints", "poses.csv", "--name", "early")
    assert not Path("results/early").exists()  # said before anything is measured
