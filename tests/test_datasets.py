"""Data sets in every layout: a marked joint must arrive on its mark, and the right pairs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from people import draw_person

from pidm_core import (
    BAD_DATA,
    UserError,
    datasets,
    encode_jpeg,
    encode_png,
    estimator,
    load_image,
    read_keypoints,
    rescale,
    write_bytes,
    write_keypoints,
)
from pidm_core.config import ModelConfig, PIDMConfig
from pidm_core.data import Pairs
from pidm_core.datasets import (
    People,
    list_images,
    open_image,
    open_joints,
    pose_images,
    read_people,
    withhold,
)
from pidm_core.files import CONTROL
from pidm_core.pair_lists import fashion_key, name_records, patn_pairs, read_pairs
from pidm_core.train import load_pairs
from tools import make_pairs

ROOT = Path(__file__).parent.parent
PATHS = [  # of one person the front, the back and the side; of another two views
    "WOMEN/Tees_Tanks/id_00007838/05_1_front",
    "WOMEN/Tees_Tanks/id_00007838/05_3_back",
    "WOMEN/Tees_Tanks/id_00007838/05_2_side",
    "MEN/Denim/id_00000080/01_1_front",
    "MEN/Denim/id_00000080/01_7_additional",
]
FLAT = [
    "fashionWOMENTees_Tanksid0000783805_1front",
    "fashionWOMENTees_Tanksid0000783805_3back",
    "fashionWOMENTees_Tanksid0000783805_2side",
    "fashionMENDenimid0000008001_1front",
    "fashionMENDenimid0000008001_7additional",
]
POSE_GAN = [name.replace("fashion", "fasion").replace("Tees_T", "TeesT") for name in FLAT]
LISTED = [(0, 1), (2, 1), (4, 3)]  # source, target
RULE = [(a, b) for a in range(3) for b in range(3) if a != b] + [(3, 4), (4, 3)]
CUT = (256, 176)


def joints(number: int) -> np.ndarray:
    """Joints in the cut frame of 256 x 176; the nose moves from image to image."""
    rng = np.random.default_rng(number)
    person = rng.integers((30, 30), (150, 240), (18, 2)).astype(np.float32)
    person[0] = 60 + 13 * number, 100 + 17 * number
    person[17] = np.nan
    return person


def picture(number: int, size: tuple[int, int] = CUT) -> np.ndarray:
    """A person with a background of its own, and a green mark where the nose is."""
    height, width = size
    image = draw_person(number // 3, number, height, width)
    x, y = (joints(number)[0] + 0.5) * [width / 176, height / 256]
    r = height / 85
    image[round(y - r) : round(y + r), round(x - r) : round(x + r)] = 0, 255, 0
    return image


def bordered(number: int) -> np.ndarray:
    """The picture as In-shop has it: 256 x 256, with 40 white columns on both sides."""
    return np.pad(picture(number), ((0, 0), (40, 40), (0, 0)), constant_values=255)


def table(names: list[str], shift: float = 0) -> dict[str, np.ndarray]:
    return {f"{name}.jpg": joints(k) + np.float32([shift, 0]) for k, name in enumerate(names)}


def images(folder: Path, names: list[str], draw: Callable[[int], np.ndarray]) -> None:
    for number, name in enumerate(names):
        write_bytes(folder / f"{name}.jpg", encode_jpeg(draw(number)))


def pair_csv(path: Path, names: list[str]) -> None:
    rows = [f"{names[source]}.jpg,{names[target]}.jpg" for source, target in LISTED]
    write_bytes(path, "\n".join(["from,to", *rows]).encode())


def pose_folder(root: Path) -> None:
    """GFLA's and PIDM's text: 18 rows `x y` in the frame of the whole 256 x 256 image."""
    for number, name in enumerate(PATHS):
        rows = np.nan_to_num(joints(number) + np.array([40, 0]), nan=-1)
        text = "".join(f"{x:.18e} {y:.18e}\n" for x, y in rows)
        write_bytes(root / "pose" / f"{name}.txt", text.encode())


def pidm(root: Path, draw: Callable[[int], np.ndarray] = bordered, folder: str = "img") -> None:
    images(root / folder, PATHS, draw)
    pose_folder(root)
    lines = [f"img/{PATHS[1]}.jpg,img/{PATHS[0]}.jpg,img/{PATHS[2]}.jpg\n"]
    lines += [f"img/{PATHS[3]}.jpg,img/{PATHS[4]}.jpg\n"]
    write_bytes(root / "train_pairs.txt", "".join(lines).encode())


def pidm_large(root: Path) -> None:
    pidm(root, lambda number: picture(number, (1101, 750)), "img_highres")


def pidm_stretched(root: Path) -> None:
    """Square without borders, as NTED's and PIDM's scripts resize the large images."""
    pidm(root, lambda number: picture(number, (256, 256)))


def patn(root: Path, spelling: str = "fasion") -> None:
    images(root / "train", FLAT, picture)
    write_keypoints(root / f"{spelling}-resize-annotation-train.csv", table(FLAT))
    pair_csv(root / f"{spelling}-resize-pairs-train.csv", FLAT)


def patn_other_spelling(root: Path) -> None:
    patn(root, "fashion")


def pose_gan(root: Path) -> None:
    images(root / "train", POSE_GAN, bordered)
    write_keypoints(root / "fasion-annotation-train.csv", table(POSE_GAN, 40))
    pair_csv(root / "fasion-pairs-train.csv", POSE_GAN)


def official(root: Path) -> None:
    """The official archive, PATN's files beside it."""
    images(root / "Img" / "img", PATHS, bordered)
    write_keypoints(root / "fasion-resize-annotation-train.csv", table(FLAT))
    pair_csv(root / "fasion-resize-pairs-train.csv", FLAT)


def pcdms(root: Path) -> None:
    images(root / "img", PATHS, bordered)
    pose_folder(root)
    rows = [
        {"source_image": f"./img/{PATHS[s]}.jpg", "target_image": f"./img/{PATHS[t]}.jpg"}
        for s, t in LISTED
    ]
    write_bytes(root / "train_data.json", json.dumps(rows).encode())


LAYOUTS = [
    pidm, pidm_large, pidm_stretched, patn, patn_other_spelling, pose_gan, official, pcdms,
]  # fmt: skip


def arrivals(pairs: Pairs) -> list[tuple[int, int]]:
    """The pairs that come out, after checking that each target's nose lies on its mark."""
    batch = pairs.batch(np.arange(len(pairs)), np.random.default_rng(0), max_scale=0.0)
    red, green, blue = np.moveaxis(batch.target.astype(float), -1, 0)
    weight = ((green > 180) & (red < 90) & (blue < 90)).astype(float)
    y, x = np.indices(batch.target.shape[1:3])
    marks = np.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1)
    marks /= weight.sum((1, 2))[:, None]
    assert np.abs(marks - batch.keypoints[:, 0]).max() < 1.2  # px
    assert np.isnan(batch.keypoints[:, [16, 17]]).any(1).all()  # the missing ear, or its mirror
    shots = [(im[:, 2, 2].mean(-1) - 40) / 20 for im in (batch.source, batch.target)]
    return [(round(source), round(target)) for source, target in zip(*shots, strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deepfashion_in_every_layout(
    layout: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout(tmp_path)
    pairs = load_pairs(PIDMConfig(data=str(tmp_path), model=ModelConfig(size=CUT)))
    assert sorted(arrivals(pairs)) == LISTED
    assert "3 train pairs instead of the published 101,966" in caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_image_is_opened_as_its_data_set_shows_it(
    layout: Callable[[Path], None], tmp_path: Path
) -> None:
    layout(tmp_path)
    people = read_people(tmp_path)
    for index, record in enumerate(people.records):
        image, joints = people.open(index)
        assert np.array_equal(open_image(record.path), image)
        assert np.array_equal(open_joints(record.path), joints, equal_nan=True)
    mask = tmp_path / "mask.png"
    write_bytes(mask, encode_png(load_image(people.records[0].path)))
    assert np.array_equal(open_image(mask, like=people.records[0].path), people.open(0)[0])
    write_bytes(mask, encode_png(people.open(0)[0]))  # drawn over what is shown
    assert np.array_equal(open_image(mask, like=people.records[0].path), people.open(0)[0])
    with pytest.raises(UserError, match="nowhere"):
        open_image(tmp_path / "nowhere" / people.records[0].name)


@pytest.mark.parametrize("name", ["fasion-annotation-train", "fashion-resize-annotation-train"])
@pytest.mark.parametrize("layout", [patn, pidm_large])
def test_estimated_joints_are_px_of_the_images_under_published_names_too(
    tmp_path: Path, layout: Callable[[Path], None], name: str
) -> None:
    layout(tmp_path)
    shutil.rmtree(tmp_path / "pose", ignore_errors=True)
    (tmp_path / "fasion-resize-annotation-train.csv").unlink(missing_ok=True)
    found = pose_images(tmp_path)
    noses = {fashion_key(name): joints(k) for k, name in enumerate(FLAT)}
    sizes = [load_image(record.path).shape[:2] for record in found]
    answers = iter(
        rescale(noses[fashion_key(record.name)], CUT, size)
        for record, size in zip(found, sizes, strict=True)
    )
    weights = tmp_path / "weights.pth"
    write_bytes(weights, b"weights")
    out = tmp_path / f"{name}.csv"
    made_with = estimator.describe(weights, tmp_path)
    todo = estimator.unfinished(out, made_with, found)

    def network(batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [next(answers) for _ in batch]

    steps = estimator.estimate_all(todo, network, out, made_with=made_with, batch_size=2, broken=[])
    assert sum(steps) == len(found)
    estimator.finish(out)
    pairs = load_pairs(PIDMConfig(data=str(tmp_path), model=ModelConfig(size=CUT)))
    assert sorted(arrivals(pairs)) == LISTED


def test_joints_of_a_file_of_ones_own_are_px_of_the_image_files(tmp_path: Path) -> None:
    pidm(tmp_path)
    write_keypoints(tmp_path / "mine.csv", table(PATHS, 40))
    config = PIDMConfig(data=str(tmp_path), keypoints=str(tmp_path / "mine.csv"))
    assert sorted(arrivals(load_pairs(config))) == LISTED


@pytest.mark.parametrize("listing", ["train.lst", "Anno/list_eval_partition.txt", ""])
def test_without_a_pair_list_the_rule_applies_to_the_training_images(
    tmp_path: Path, listing: str
) -> None:
    pidm(tmp_path)
    (tmp_path / "train_pairs.txt").unlink()
    if not listing:
        with pytest.raises(UserError, match="nothing says which images are for train") as caught:
            read_people(tmp_path)
        assert caught.value.code == BAD_DATA
        return
    rows = {
        "train.lst": [f"{name}.jpg" for name in FLAT[:3]],
        "Anno/list_eval_partition.txt": ["5", "image_name item_id evaluation_status"]
        + [f"img/{p}.jpg id_1 {'train' if k < 3 else 'query'}" for k, p in enumerate(PATHS)],
    }
    write_bytes(tmp_path / listing, "\n".join(rows[listing]).encode())
    people = read_people(tmp_path)
    pairs = Pairs(people.records, people.keypoints, size=CUT, view=people.view)
    assert sorted(arrivals(pairs)) == RULE[:6]
    assert len({record.pid for record in read_people(tmp_path).records}) == 1


def test_the_test_split_has_files_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(tmp_path / "test", FLAT, picture)
    write_keypoints(tmp_path / "fasion-resize-annotation-test.csv", table(FLAT))
    pair_csv(tmp_path / "fasion-resize-pairs-test.csv", FLAT)
    people = read_people(tmp_path, split="test")
    assert people.pairs is not None
    names = [[people.records[k].name[:-4] for k in pair] for pair in people.pairs]
    assert names == [[FLAT[s], FLAT[t]] for s, t in LISTED]
    assert "3 test pairs instead of the published 8,570" in caplog.text


@pytest.mark.parametrize("folders", [False, True])
def test_any_folder_with_keypoints_and_pairs(tmp_path: Path, folders: bool) -> None:
    names = [f"{'ab'[k % 2]}/{k}" if not folders else f"{k}/face" for k in range(5)]
    images(tmp_path / "images", names, picture)
    write_keypoints(tmp_path / "k.csv", table(names))
    pair_csv(tmp_path / "p.csv", [f"./{name}" for name in names])
    config = PIDMConfig(
        data=str(tmp_path / "images"), keypoints=str(tmp_path / "k.csv"),
        pairs=str(tmp_path / "p.csv"), model=ModelConfig(size=CUT),
    )  # fmt: skip
    assert sorted(arrivals(load_pairs(config))) == LISTED
    with pytest.raises(UserError, match="any other layout give --keypoints and --pairs"):
        read_people(config.data)


@pytest.mark.parametrize("name", ["{person:04d}/{k}.jpg", "anna{person}-{k}.jpg"])
def test_who_is_withheld_is_told_by_the_pair_list_where_names_tell_nothing(name: str) -> None:
    names = [name.format(person=person, k=k) for person in range(10) for k in range(4)]
    rows = np.arange(40).reshape(10, 4)
    pairs = np.concatenate([rows[:, [0, 1]], rows[:, [3, 2]], rows[:, [2, 1]]])
    people = People(name_records(names), {}, pairs)
    rest, away = withhold(people, 0.3, seed=0)
    persons = [{names.index(r.name) // 4 for r in part.records} for part in (rest, away)]
    assert [len(one) for one in persons] == [7, 3]
    assert not persons[0] & persons[1]
    assert [len(part.pairs) for part in (rest, away) if part.pairs is not None] == [21, 9]


@pytest.mark.parametrize("folder", [b"fr\xe9d\xe9ric", b"a\nb"])
def test_folders_with_names_that_no_list_can_hold_are_left_out_and_named(
    tmp_path: Path, folder: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    odd = tmp_path / os.fsdecode(folder)
    try:
        write_bytes(odd / "1.jpg", b"")
    except OSError:
        pytest.skip("the file system has no such names")
    write_bytes(tmp_path / "good" / "2.jpg", b"")
    assert [record.name for record in list_images(tmp_path)] == ["good/2.jpg"]
    shown = CONTROL.sub("?", odd.name)
    assert f"1 files or folders left out, the first: {tmp_path / shown}: control" in caplog.text


@pytest.mark.parametrize("first", ["cover", FLAT[0]])
def test_deepfashion_is_known_by_any_of_its_images(
    tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patn(tmp_path)
    write_bytes(tmp_path / "train/cover.jpg", encode_jpeg(picture(9)))
    scan = os.scandir

    @contextlib.contextmanager
    def ordered(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scan(folder) as entries:  # a file system lists them in any order
            yield iter(sorted(entries, key=lambda entry: not entry.name.startswith(first)))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", ordered)
        assert datasets._fashion_folder(tmp_path, "train") == tmp_path / "train"
    assert len(read_people(tmp_path).records) == len(FLAT)


def test_a_file_that_names_an_image_twice_is_refused_unless_one_is_its_path(tmp_path: Path) -> None:
    names = [f"a/{letter}_{k}" for k, letter in enumerate("aabbb")]
    images(tmp_path / "people", names, picture)
    pair_csv(tmp_path / "p.csv", names)
    known = {f"{name}.jpg": joints(k) for k, name in enumerate(names)}
    read = functools.partial(
        read_people, tmp_path / "people", keypoints=tmp_path / "k.csv", pairs=tmp_path / "p.csv"
    )
    write_keypoints(tmp_path / "k.csv", {**known, "elsewhere/a_0.jpg": joints(7)})
    np.testing.assert_array_equal(read().keypoints["a/a_0.jpg"], joints(0))
    others = {name.replace("a/", "b/", 1): one for name, one in known.items()}
    write_keypoints(tmp_path / "k.csv", {**others, "elsewhere/a_0.jpg": joints(7)})
    with pytest.raises(UserError, match=r"'b/a_0\.jpg' and 'elsewhere/a_0\.jpg' may both be a/a_0"):
        read()


def test_a_folder_called_train_is_not_market1501_by_that_alone(tmp_path: Path) -> None:
    names = [f"train/{letter}_{k}" for k, letter in enumerate("aabbb")]
    images(tmp_path / "people", names, picture)
    write_keypoints(tmp_path / "k.csv", table(names))
    pair_csv(tmp_path / "p.csv", names)
    config = PIDMConfig(
        data=str(tmp_path / "people"), keypoints=str(tmp_path / "k.csv"),
        pairs=str(tmp_path / "p.csv"), model=ModelConfig(size=CUT),
    )  # fmt: skip
    assert sorted(arrivals(load_pairs(config))) == LISTED
    assert [r.name for r in pose_images(tmp_path / "people")] == [f"{n}.jpg" for n in names]


def test_market1501_takes_a_list_and_warns_only_of_the_published_set(
    market: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = read_people(market)
    assert people.pairs is None
    assert caplog.text == ""
    first, second = (record.name for record in people.records[:2])
    write_bytes(tmp_path / "pairs.csv", f"from,to\n{second},{first}\n".encode())
    listed = read_people(market, pairs=tmp_path / "pairs.csv").pairs
    assert listed is not None
    assert listed.tolist() == [[1, 0]]
    monkeypatch.setattr("pidm_core.datasets._MARKET", {"train": (len(people.records), first)})
    read_people(market)
    few = "train pairs instead of the published 263,632; results are not comparable"
    assert few in caplog.text
    assert "images are there" not in caplog.text
    monkeypatch.setattr("pidm_core.datasets._MARKET", {"train": (12_936, first)})
    read_people(market)
    assert f"Market-1501: {len(people.records)} of 12,936 images are there, " in caplog.text
    assert caplog.text.count(few) == 2


def test_targets_without_joints_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patn(tmp_path)
    keypoints = table(FLAT)
    keypoints[f"{FLAT[1]}.jpg"][:] = np.nan  # the target of two pairs
    keypoints[f"{FLAT[4]}.jpg"][:] = np.nan  # a source, which needs none
    write_keypoints(tmp_path / "fasion-resize-annotation-train.csv", keypoints)
    pairs = load_pairs(PIDMConfig(data=str(tmp_path), model=ModelConfig(size=CUT)))
    assert arrivals(pairs) == [(4, 3)]
    assert "2 of 3 listed pairs left out" in caplog.text


# ---------------------------------------------------------------- what is refused


def swap(root: Path) -> None:
    keypoints = {name: one[:, ::-1] for name, one in table(FLAT).items()}
    write_keypoints(root / "fasion-resize-annotation-train.csv", keypoints)


def enlarge(root: Path) -> None:
    keypoints = {name: one * 3 for name, one in table(FLAT).items()}
    write_keypoints(root / "fasion-resize-annotation-train.csv", keypoints)


def drop_a_joint(root: Path) -> None:
    path = root / "fasion-resize-annotation-train.csv"
    path.write_text(path.read_text().replace("[100, ", "["))


def pair(line: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        with (root / "fasion-resize-pairs-train.csv").open("a") as file:
            file.write(f"\n{line}\n")

    return spoil


def drop_keypoints(root: Path) -> None:
    (root / "fasion-resize-annotation-train.csv").unlink()


def other_names(root: Path) -> None:
    write_keypoints(root / "fasion-resize-annotation-train.csv", {"0002_c1.jpg": joints(0)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap, "train.csv: 32% of the joints lie outside the image; x and y are swapped"),
        (enlarge, "the file is for images of another size"),
        (drop_a_joint, "train.csv:4: 17 joints instead of 18"),
        (drop_keypoints, "train --out "),  # tools/extract_poses.py --data …/train --out …
        (other_names, "none of its 1 names is an image of the data set"),
        (pair(f"{FLAT[0]}.jpg,{FLAT[0][:-5]}4full.jpg"), "train.csv:5: 'fashionWOMENTees_T"),
        (pair(f"../../etc/{FLAT[0]}.jpg,{FLAT[1]}.jpg"), "leaves the data folder"),
        (pair(f"{FLAT[0]}.jpg,..\\x\\{FLAT[1]}.jpg"), "leaves the data folder"),
        (pair(f"/{FLAT[0]}.jpg,{FLAT[1]}.jpg"), "leaves the data folder"),
        (pair(f"C:{FLAT[0]}.jpg,{FLAT[1]}.jpg"), "leaves the data folder"),
        (pair(f"{FLAT[0]}.jpg"), "train.csv:5: expected 'source,target'"),
        (pair("a,b,c"), "train.csv:5: expected 'source,target'"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    patn(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        load_pairs(PIDMConfig(data=str(tmp_path), model=ModelConfig(size=CUT)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == BAD_DATA


def test_a_joint_outside_its_image_is_missing_when_it_is_opened(tmp_path: Path) -> None:
    names = [f"{k}" for k in range(5)]
    images(tmp_path / "images", names, picture)
    pair_csv(tmp_path / "p.csv", names)
    known = {f"{k}.jpg": joints(k) for k in range(5)}
    expected = known["1.jpg"].copy()
    known["1.jpg"][3] = CUT[1] + 4, 10
    expected[3] = np.nan
    write_keypoints(tmp_path / "k.csv", known)
    people = read_people(
        tmp_path / "images", keypoints=tmp_path / "k.csv", pairs=tmp_path / "p.csv"
    )
    np.testing.assert_array_equal(people.open(1)[1], expected)


def test_keypoints_of_smaller_images_are_refused(tmp_path: Path) -> None:
    """0.727: joints of images of 256 px, and images of 352."""
    names = [f"{k}" for k in range(16)]
    images(tmp_path / "images", names, lambda k: picture(k % 5))
    pair_csv(tmp_path / "p.csv", names)
    for scale in (1, 0.727, 0.5):
        write_keypoints(tmp_path / "k.csv", {f"{k}.jpg": joints(k % 5) * scale for k in range(16)})
        files = {"keypoints": tmp_path / "k.csv", "pairs": tmp_path / "p.csv"}
        if scale == 1:
            assert len(read_people(tmp_path / "images", **files).keypoints) == 16
            continue
        with pytest.raises(UserError, match=r"k\.csv: .* the file is for smaller images"):
            read_people(tmp_path / "images", **files)


def test_a_missing_folder_is_one_line_of_the_tool(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/train_pidm.py"), "--data", str(tmp_path / "none")]
    command += ["--dry-run", "--model.channels", "32", "--model.channel-mults", "1,1,1,1,1,1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (BAD_DATA, 1)
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: no such folder")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", ":1: the header"),
        ("a.csv", "to,from\na,b\n", ":1: the header"),
        ("a.csv", "from,to\n", "no pairs"),
        ("a.txt", "", ":1: the header"),
        ("a.txt", "a.jpg\n", ":1: expected 'target,source"),
        ("a.json", "[]", "no pairs"),
        ("a.json", '[{"source_image": "a"}]', "entry 1"),
        ("a.json", '[{"source_image": "a", "target_image": 3}]', "entry 1"),
        ("a.json", "[3]", "entry 1"),
    ],
)
def test_broken_pair_lists_are_one_clear_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    write_bytes(tmp_path / name, text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(tmp_path / name)
    assert caught.value.code == BAD_DATA


# ---------------------------------------------------------------- names and pair lists


def test_pair_lists_as_users_have_them(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.csv", b"\xef\xbb\xbffrom,to,\r\na.jpg, b.jpg,\r\n\r\nc.jpg,d.jpg")
    assert read_pairs(tmp_path / "a.csv") == [("a.jpg", "b.jpg", 2), ("c.jpg", "d.jpg", 4)]
    write_bytes(tmp_path / "a.txt", b"t.jpg,s.jpg,r.jpg\nu.jpg,v.jpg\n")
    expected = [("s.jpg", "t.jpg", 1), ("r.jpg", "t.jpg", 1), ("v.jpg", "u.jpg", 2)]
    assert read_pairs(tmp_path / "a.txt") == expected


def test_every_spelling_of_a_name_is_the_same_image() -> None:
    for path, flat, other in zip(PATHS, FLAT, POSE_GAN, strict=True):
        spellings = [f"img/{path}.jpg", f"img_highres/{path}.png", f"./img/{path}.jpg"]
        spellings += [f"{flat}.jpg", f"{other}.jpg", flat, f"/EXPERIMENTS/fashion/img/{path}.jpg"]
        assert {fashion_key(name) for name in spellings} == {fashion_key(path)} != {""}
    assert len({fashion_key(name) for name in FLAT}) == len(FLAT)
    assert fashion_key("0002_c1s1_000451_03.jpg") == ""


def test_identities_are_numbered_as_they_appear() -> None:
    names = ["0007_c1.jpg", "-1_c1.jpg", "0002_c1.jpg", "0000_c1.jpg", "0007_c2.jpg"]
    assert [record.pid for record in name_records(names)] == [1, -1, 2, 0, 1]
    assert [record.pid for record in name_records([f"{p}.jpg" for p in PATHS])] == [1, 1, 1, 2, 2]
    assert [record.pid for record in name_records(FLAT)] == [1, 1, 1, 2, 2]


def test_pairs_are_patns_in_its_order() -> None:
    """Expected: itertools.permutations person by person, then pandas' draw, worked out with them.

    pandas.DataFrame({"n": range(8)}).sample(n=4, replace=False, random_state=0).n.tolist()
    """
    unusable = joints(3)
    unusable[2] = np.nan  # no right shoulder: it does not put its person first
    keypoints = {f"{FLAT[3][:-6]}2side.jpg": unusable, **table(FLAT)}
    keypoints |= {"0000_a.jpg": joints(0), "0000_b.jpg": joints(1)}
    names = [f"{name}.jpg" for name in FLAT]
    every = [(names[a], names[b]) for a, b in RULE]
    assert patn_pairs(keypoints) == every
    assert patn_pairs(keypoints, sample=4) == [every[k] for k in (6, 2, 1, 7)]
    assert len(patn_pairs(keypoints, sample=100)) == 8


@pytest.mark.skipif("MARKET1501_TEST" not in os.environ, reason="needs a folder of PATN's lists")
def test_the_real_test_pairs_line_by_line() -> None:
    home = Path(os.environ["MARKET1501_TEST"])
    pairs = patn_pairs(read_keypoints(home / "market-annotation-test.csv"), sample=12_000)
    assert pairs == [pair[:2] for pair in read_pairs(home / "market-pairs-test.csv")]


def test_make_pairs_writes_what_the_training_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patn(tmp_path)
    listed = tmp_path / "fasion-resize-pairs-train.csv"
    published = listed.read_bytes()
    keypoints = ["--keypoints", str(tmp_path / "fasion-resize-annotation-train.csv")]
    with pytest.raises(UserError, match=r"pairs-train\.csv: exists already.* --out "):
        make_pairs.main(keypoints)
    assert make_pairs.main([*keypoints, "--out", str(listed), "--dry-run"]) == 0
    assert listed.read_bytes() == published
    assert make_pairs.main([*keypoints, "--out", str(listed)]) == 0
    assert "DeepFashion: 8 train pairs instead of the published 101,966" in caplog.text
    pairs = load_pairs(PIDMConfig(data=str(tmp_path), model=ModelConfig(size=CUT)))
    assert sorted(arrivals(pairs)) == sorted(RULE)


def test_make_pairs_refuses_a_name_that_no_list_can_hold(tmp_path: Path) -> None:
    out, keypoints = tmp_path / "p.csv", tmp_path / "k.csv"
    write_keypoints(keypoints, {f"anna_{k}.jpg": joints(0) for k in ("1", "2", "a,b")})
    with pytest.raises(UserError, match=r"p\.csv: no .* the comma of 'anna_a,b\.jpg'; rename it"):
        make_pairs.main(["--keypoints", str(keypoints), "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--sample", "--seed"])
def test_make_pairs_refuses_negative_numbers(tmp_path: Path, flag: str) -> None:
    patn(tmp_path)
    out, keypoints = tmp_path / "p.csv", tmp_path / "fasion-resize-annotation-train.csv"
    with pytest.raises(UserError, match=r"-1.* must be at least 0"):
        make_pairs.main(["--keypoints", str(keypoints), "--out", str(out), flag, "-1"])
    assert not out.exists()


def test_make_pairs_looks_at_the_images_beside(
    tmp_path: Path, market: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = read_people(market)
    (tmp_path / "market1501").symlink_to(market / "market1501")
    source, out = tmp_path / "market-annotation-train.csv", tmp_path / "p.csv"
    command = ["--keypoints", str(source), "--out", str(out)]
    write_keypoints(source, {name: one * 2 for name, one in people.keypoints.items()})
    with pytest.raises(UserError, match=r"annotation-train\.csv: .* images of another size"):
        make_pairs.main(command)
    assert not out.exists()
    write_keypoints(source, people.keypoints)
    assert make_pairs.main(command) == 0
    assert caplog.text == ""
    first = people.records[0].name
    monkeypatch.setattr("pidm_core.datasets._MARKET", {"train": (36, first)})
    make_pairs.main(command)
    assert "train pairs instead of the published 263,632" in caplog.text


def test_make_pairs_knows_the_frame_of_published_names(tmp_path: Path) -> None:
    source = tmp_path / "fasion-resize-annotation-test.csv"
    write_keypoints(source, table(FLAT, 60))  # of wider images than 256 x 176
    with pytest.raises(UserError, match=r"annotation-test\.csv: .* of another size"):
        make_pairs.main(["--keypoints", str(source)])
    source = tmp_path / "fasion-annotation-test.csv"
    write_keypoints(source, table(FLAT, 40))
    assert make_pairs.main(["--keypoints", str(source)]) == 0


def test_poses_are_estimated_for_the_images_that_are_looked_up(
    tmp_path: Path, market: Path
) -> None:
    pidm(tmp_path / "own")
    assert [r.name for r in pose_images(tmp_path / "own")] == sorted(f"{p}.jpg" for p in PATHS)
    images(tmp_path / "flat" / "train", FLAT[:3], picture)
    images(tmp_path / "flat" / "test", FLAT[3:], picture)
    for folder, names in (("flat", FLAT[:3]), ("flat/test", FLAT[3:])):
        assert [r.name for r in pose_images(tmp_path / folder)] == sorted(f"{n}.jpg" for n in names)
    assert [r.name for r in pose_images(market)] == [r.name for r in read_people(market).records]
