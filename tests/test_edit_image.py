"""The editing tool on a tiny model and drawn people."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import save_tiny

from pidm_core import (
    PIDMPipeline,
    UserError,
    load_image,
    read_keypoints,
    rescale,
    write_keypoints,
)
from pidm_core.files import BAD_DATA, encode_png
from pidm_core.garments import garment_mask
from tools.edit_image import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def people(market: Path) -> tuple[str, str, str]:
    """Two images whose trunk was found, and the keypoint file."""
    table = market / "market1501" / "market-annotation-train.csv"
    whole = [n for n, k in read_keypoints(table).items() if not np.isnan(k[[2, 5, 8, 11]]).any()]
    folder = market / "market1501" / "bounding_box_train"
    return str(folder / whole[0]), str(folder / whole[1]), str(table)


def shown(strip: Path) -> list[np.ndarray]:
    """The 32x16 images of a strip, which shows each pixel as a square of 8x8."""
    pixels = load_image(strip)[20 : 20 + 256]
    return [pixels[::8, left : left + 128 : 8] for left in range(0, pixels.shape[1], 128 + 4)]


def test_an_edit_keeps_what_lies_outside_the_garment(
    model: str, people: tuple[str, str, str], tmp_path: Path
) -> None:
    style, reference, table = people
    out = tmp_path / "edited.png"
    common = ["--run", model, "--style", style, "--reference", reference, "--keypoints", table]
    assert main(["appearance", *common, "--steps", "2", "--out", str(out)]) == 0
    _, kept, edited = shown(out)
    joints = read_keypoints(table)[Path(reference).name]
    mask = garment_mask(
        rescale(joints, load_image(reference).shape[:2], (32, 16)), "upper", (32, 16)
    )
    assert np.array_equal(edited[~mask], kept[~mask])
    assert (edited[mask] != kept[mask]).any(1).mean() > 0.9
    marked = np.zeros((32, 16), dtype=np.uint8)
    marked[8:16] = 255
    drawn, clear = tmp_path / "mask.png", tmp_path / "clear.png"
    Image.fromarray(marked).save(drawn)
    opaque = np.dstack([np.full((32, 16, 3), 255, dtype=np.uint8), marked])
    Image.fromarray(opaque, "RGBA").save(clear)  # white on nothing, as painting programs leave it
    for mask in (drawn, clear):
        main(["appearance", *common, "--steps", "2", "--mask", str(mask), "--out", str(out)])
        _, kept, edited = shown(out)
        assert np.array_equal(kept[marked == 0], edited[marked == 0])
        assert not np.array_equal(kept, edited)
    Image.fromarray(marked // 255).save(drawn)  # labels 0 and 1
    with pytest.raises(UserError, match="marks nothing to redraw"):
        main(["appearance", *common, "--mask", str(drawn), "--out", str(out)])


@pytest.mark.parametrize("flag", ["style", "reference", "mask"])
def test_no_picture_given_is_overwritten(
    flag: str, model: str, people: tuple[str, str, str], tmp_path: Path
) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(encode_png(load_image(people[0])))
    named = {"style": people[0], "reference": people[1], "keypoints": people[2], flag: str(own)}
    given = [word for name, path in named.items() for word in (f"--{name}", path)]
    with pytest.raises(UserError, match=f"is --{flag}, which would be lost"):
        main(["appearance", "--run", model, *given, "--out", f"{tmp_path}/./own.png"])
    assert np.array_equal(load_image(own), load_image(people[0]))


@pytest.mark.parametrize(("factor", "said"), [(4, "lie outside it"), (np.nan, "has no joints")])
def test_joints_of_another_frame_are_refused(
    factor: float, said: str, model: str, people: tuple[str, str, str], tmp_path: Path
) -> None:
    style, pose, table = people
    joints = read_keypoints(table)[Path(pose).name] * factor
    if np.isnan(factor):
        joints[:] = np.nan
    write_keypoints(tmp_path / "other.csv", {Path(pose).name: joints})
    given = ["--style", style, "--pose", pose, "--keypoints", str(tmp_path / "other.csv")]
    with pytest.raises(UserError, match=said):
        main(["draw", "--run", model, *given, "--out", str(tmp_path / "out.png")])


def test_an_interpolation_shows_its_ends_and_frames(
    model: str,
    people: tuple[str, str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b, table = people
    out = tmp_path / "strip.png"
    options = ["--run", model, "--style", a, "--to", b, "--keypoints", table, "--frames", "3"]
    command = ["interpolate", *options, "--steps", "2", "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{out}: 3 images of 32x16 to draw, 2 steps each\n"
    assert not out.exists()
    assert main(command) == 0
    first, *frames, last = shown(out)
    assert len(frames) == 3
    for given, image in ((a, first), (b, last)):
        small = Image.fromarray(load_image(given)).resize((16, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(image, small)
    assert not any(np.array_equal(x, y) for x, y in pairwise(frames))


def test_one_model_draws_from_style_and_pose_either_or_neither(
    model: str, people: tuple[str, str, str], tmp_path: Path
) -> None:
    style, pose, table = people
    out = tmp_path / "drawn.png"
    common = ["draw", "--run", model, "--steps", "2", "--count", "2", "--out", str(out)]
    drawn = []
    for given in ([], ["--style", style], ["--pose", pose], ["--style", style, "--pose", pose]):
        assert main([*common, "--keypoints", table, *given]) == 0
        images = shown(out)
        assert len(images) == len(given) // 2 + 2
        drawn.append(np.stack(images[-2:]))
    assert not any(np.array_equal(a, b) for a, b in combinations(drawn, 2))
    pipe = PIDMPipeline.from_pretrained(model)
    neither = pipe(None, None, seeds=[0, 1], steps=2).images
    assert np.array_equal(drawn[0], neither)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["paint"], "begin with draw, appearance or interpolate, not 'paint'", 2),
        (["appearance"], "--style IMAGE is missing", 2),
        (["interpolate", "--frames", "1"], "frames: must be at least 2", 2),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    model: str, options: list[str], words: str, code: int
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        main([*options, *(["--run", model] if len(options[0]) > 5 else [])])
    assert caught.value.code == code


def test_a_picture_without_joints_is_refused(
    model: str, people: tuple[str, str, str], tmp_path: Path
) -> None:
    a, _, table = people
    stranger = tmp_path / "stranger.jpg"
    stranger.write_bytes(Path(a).read_bytes())
    options = ["--run", model, "--style", a, "--reference", str(stranger), "--keypoints", table]
    with pytest.raises(UserError, match=r"holds no joints of stranger.jpg") as caught:
        main(["appearance", *options])
    assert caught.value.code == BAD_DATA


def test_the_keypoint_file_beside_the_images_is_found(
    model: str, people: tuple[str, str, str], tmp_path: Path
) -> None:
    a, _, table = people
    strips = []
    for given in ([], ["--keypoints", table]):
        out = tmp_path / f"{len(given)}.png"
        command = ["draw", "--run", model, "--pose", a, "--steps", "1", "--count", "1"]
        assert main([*command, *given, "--out", str(out)]) == 0
        strips.append(load_image(out))
    assert np.array_equal(*strips)


def test_a_picture_is_called_what_it_is(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jpg is no \.png"):
        main(["draw", "--run", model, "--out", str(tmp_path / "a.jpg")])


def test_a_misspelt_mask_is_named(model: str, people: tuple[str, str, str]) -> None:
    a, b, _ = people
    with pytest.raises(UserError, match="mask 'uper' is neither upper nor lower"):
        main(["appearance", "--run", model, "--style", a, "--reference", b, "--mask", "uper"])
