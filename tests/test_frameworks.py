"""Augmented folders in other frameworks, given to them as docs/frameworks.md says.

The made-up market has 6 + 4 people, six cameras and two images by each: 72 training images, of
which half are kept and as many generated; of the test people's 48 images 24 are the query, and
the gallery has 3 junk images and 3 distractors more. torchreid's reader is its own; what the
others do is stated here as data.
"""

from __future__ import annotations

import csv
import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from people import draw_person, make_market, planned, render_all

from pidm_core import UserError, encode_jpeg, parse, write_bytes
from pidm_reid import compat
from pidm_reid.dataset import PIDMAugmentedDataset

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "frameworks.md").read_text()
NAME = "market1501_pidm40"
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"

Image = tuple[str, int | str, int | str]
"""Name, person or label, camera from 0."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's /path/to: market1501, its augmented folder, and a copied one in copied/."""
    home = make_market(tmp_path_factory.mktemp("frameworks"), cameras=6)
    render_all(planned(home, per_image=1), home / NAME)
    render_all(planned(home, per_image=1), home / "copied" / NAME, copy=True)
    return home


def blocks(section: str, language: str, place: Path) -> list[str]:
    """Code blocks of a section of the page, with the folder put in; there is at least one."""
    _, _, text = PAGE.partition(f"\n## {section}\n")
    found = re.findall(rf"```{language}\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    assert found, f"no {language} in {section}"
    return [block.replace("/path/to", str(place)) for block in found]


# ---------------------------------------------------------------- what the readers do


@dataclass(frozen=True)
class Reader:
    """A reader of Market-1501 in somebody's framework."""

    root: Callable[[Path], Path]  # the root that the page gives it
    folders: tuple[str, ...]  # below its root, in the order in which it tries them
    label: Callable[[int, list[int]], int | str]  # of a training person, given all, sorted


def root_dir(section: str) -> Callable[[Path], Path]:
    return lambda place: Path(
        yaml.safe_load(blocks(section, "yaml", place)[0])["DATASETS"]["ROOT_DIR"]
    )


def exported(place: Path) -> Path:
    name, _, folder = blocks("fast-reid", "bash", place)[0].strip().partition("=")
    assert name == "export FASTREID_DATASETS"
    return Path(folder)


def position(pid: int, people: list[int]) -> int:
    return people.index(pid)


def text(pid: int, people: list[int]) -> str:
    return f"market1501_{pid}"


FULL_NAME = "Market-1501-v15.09.15"
READERS = {
    "fast-reid": Reader(exported, (FULL_NAME, ""), text),
    "TransReID": Reader(root_dir("TransReID"), ("market1501",), position),
    "SOLIDER-REID": Reader(root_dir("SOLIDER-REID"), ("market1501",), position),
    "CLIP-ReID": Reader(root_dir("CLIP-ReID"), (FULL_NAME,), position),
}


def read(reader: Reader, place: Path) -> dict[str, list[Image]]:
    """The images that a framework finds, by subset.

    Common to all: `*.jpg`, hidden ones not; the first `<digits or dashes>_c<digit>` of the path;
    person -1 is left out, 0 to 1501 and cameras 1 to 6 are asserted; test people keep their
    numbers, training people are labelled.
    """
    root = reader.root(place)
    home = next((root / name for name in reader.folders if (root / name).is_dir()), None)
    if home is None:
        raise FileNotFoundError(f"{root}: none of {reader.folders}")
    found = {}
    for subset in (TRAIN, QUERY, GALLERY):
        assert (home / subset).is_dir()
        images = []
        for path in sorted((home / subset).glob("[!.]*.jpg")):
            match = re.search(r"([-\d]+)_c(\d)", str(path))
            assert match is not None
            pid, camera = map(int, match.groups())
            if pid != -1:
                assert 0 <= pid <= 1501
                assert 1 <= camera <= 6
                images.append((path.name, pid, camera - 1))
        found[subset] = images
    people = sorted({pid for _, pid, _ in found[TRAIN]})
    labelled: dict[str, list[Image]] = {
        TRAIN: [(name, reader.label(pid, people), camera) for name, pid, camera in found[TRAIN]],
        QUERY: [*found[QUERY]],
        GALLERY: [*found[GALLERY]],
    }
    return labelled


# ---------------------------------------------------------------- what they must find


def check_training_images(images: list[Image], label: Callable[[int, list[int]], Any]) -> None:
    """36 real and 36 generated images, each of its own person and camera as the name says."""
    names = [name for name, _, _ in images]
    generated = [name for name in names if "_pidm" in name]
    assert (len(names), len(set(names)), len(generated)) == (72, 72, 36)
    sources = sorted(name.replace("_pidm0000", "") for name in generated)
    assert sources == sorted(set(names) - set(generated))
    people = [2, 4, 6, 8, 10, 12]
    for name, person, camera in images:
        assert (person, camera) == (label(int(name[:4]), people), int(name[6]) - 1)
    assert len({person for _, person, _ in images}) == 6


def check_test_images(query: list[Image], gallery: list[Image], place: Path) -> None:
    """All originals but the junk, with person and camera of their names."""
    for images, subset, size in ((query, QUERY, 24), (gallery, GALLERY, 27)):
        originals = sorted(p.name for p in (place / "market1501" / subset).iterdir())
        kept = [name for name in originals if not name.startswith("-1")]
        expected = [(name, int(name[:4]), int(name[6]) - 1) for name in kept]
        assert sorted(images) == expected
        assert len(expected) == size


@pytest.mark.parametrize("framework", READERS)
@pytest.mark.parametrize("below", ["", "copied"])
def test_readers_find_the_training_images_and_the_untouched_test_images(
    place: Path, below: str, framework: str
) -> None:
    home = place / below
    if framework == "CLIP-ReID" and below == "copied":
        with pytest.raises(FileNotFoundError):
            read(READERS[framework], home)
        (command,) = blocks("CLIP-ReID", "bash", home)
        subprocess.run(shlex.split(command), check=True)
    found = read(READERS[framework], home)
    check_training_images(found[TRAIN], READERS[framework].label)
    check_test_images(found[QUERY], found[GALLERY], place)


@pytest.mark.parametrize("below", ["", "copied"])
def test_torchreid_reads_the_folder_without_our_package(place: Path, below: str) -> None:
    assert 'root="/path/to/market1501_pidm40", sources="market1501"' in PAGE
    with compat.quiet():
        data = compat.base_class("market1501")(root=str(place / below / NAME), verbose=False)
    train, query, gallery = (
        [(os.path.basename(path), person, camera) for path, person, camera, _ in items]
        for items in (data.train, data.query, data.gallery)
    )
    label = {int(name[:4]): person for name, person, _ in train}  # in the order of a set
    assert sorted(label.values()) == [0, 1, 2, 3, 4, 5]
    check_training_images(train, lambda pid, people: label[pid])
    check_test_images(query, gallery, place)
    assert {item[3] for item in data.train} == {0}


def test_test_images_are_those_of_the_original(place: Path) -> None:
    for below in ("", "copied"):
        for subset in (QUERY, GALLERY):
            for original in (place / "market1501" / subset).iterdir():
                same = place / below / NAME / "market1501" / subset / original.name
                assert same.read_bytes() == original.read_bytes()


# ---------------------------------------------------------------- the page's code


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """Variables of the page's Python; what it registers with torchreid is taken back."""
    yield {}
    compat.data_sets().pop(NAME, None)


def test_torchreids_code_runs_and_mixes_half_and_half(place: Path, names: dict[str, Any]) -> None:
    registering, by_hand = blocks("torchreid", "python", place)
    with compat.quiet():
        exec(registering, names)
    loader = names["manager"].train_loader
    batch = next(iter(loader.batch_sampler))
    kinds = Counter("_pidm" in loader.dataset.train[k][0] for k in batch)
    assert kinds == {True: 16, False: 16}
    exec(by_hand, names)
    assert isinstance(names["data"], PIDMAugmentedDataset)
    assert (len(names["data"]), names["item"]["img"].shape) == (72, (3, 64, 32))
    assert (names["item"]["pid"], names["item"]["camid"], names["item"]["dsetid"]) == (0, 0, 0)


def test_table_for_open_metric_learning(place: Path, names: dict[str, Any]) -> None:
    (code,) = blocks("open-metric-learning", "python", place)
    exec(code, names)
    with (place / NAME / "df.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["label", "path", "split", "is_query", "is_gallery", "sequence"]
    kinds = Counter((row["split"], row["is_query"], row["is_gallery"]) for row in rows)
    assert kinds == {
        ("train", "", ""): 36 + 36,
        ("validation", "True", "False"): 4 * 6,
        ("validation", "False", "True"): 4 * 6 + 3,  # and three distractors; no junk
    }
    for row in rows:
        path = Path(row["path"])
        assert (place / NAME / path).is_file()
        assert not path.is_absolute()
        assert int(row["label"]) == int(path.name[:4])
        assert row["sequence"] == f"{int(row['label'])}_c{path.name[6]}"
    train = [(row["label"], "_pidm" in row["path"]) for row in rows if row["split"] == "train"]
    shares = [Counter(pid for pid, made in train if made is kind) for kind in (True, False)]
    assert shares[0] == shares[1]  # of each person as many generated images as real ones
    assert [*map(int, shares[0])] == [2, 4, 6, 8, 10, 12]
    assert {row["label"] for row in rows if row["is_query"] == "True"} == {"1", "3", "5", "7"}


@pytest.mark.parametrize("framework", READERS)
def test_configurations_are_short_valid_yaml(place: Path, framework: str) -> None:
    (block,) = blocks(framework, "yaml", place)
    assert len(block.splitlines()) <= 10
    settings = yaml.safe_load(block)
    data_sets = settings["DATASETS"]["NAMES"]
    assert data_sets == (["Market1501"] if framework == "fast-reid" else "market1501")
    assert settings["OUTPUT_DIR"].endswith(NAME)
    assert settings.get("MODEL", {}).get("SIE_CAMERA", False) is False


def test_the_command_is_one_of_ours() -> None:
    command = re.search(r"```bash\npython tools/(\w+)\.py (.*)\n", PAGE)
    assert command is not None
    tool = importlib.import_module(f"tools.{command[1]}")
    options = parse(tool.Options, command[2].split(), prog="", description="", example="")
    assert (options.per_image, options.out) == (1, f"/path/to/{NAME}")


def test_the_readme_names_the_page() -> None:
    assert "(docs/frameworks.md)" in (ROOT / "README.md").read_text()


# ---------------------------------------------------------------- the limits that the page states


def with_training_image(name: str, place: Path, tmp_path: Path) -> Path:
    """A root like the made-up market, with one image more."""
    shutil.copytree(place / "market1501", tmp_path / "market1501")
    image = encode_jpeg(draw_person(1, 1))
    write_bytes(tmp_path / "market1501" / TRAIN / name, image)
    return tmp_path


def torchreid_reads(root: Path) -> Any:
    with compat.quiet():
        return compat.base_class("market1501")(root=str(root), verbose=False)


@pytest.mark.parametrize("name", ["1502_c1s1_000000_00.jpg", "0002_c7s1_000000_00.jpg"])
def test_higher_persons_and_cameras_are_refused(place: Path, tmp_path: Path, name: str) -> None:
    root = with_training_image(name, place, tmp_path)
    with pytest.raises(AssertionError):
        torchreid_reads(root)
    with pytest.raises(UserError, match=r"persons 0-1501, cameras 1-6\); renumber"):
        PIDMAugmentedDataset(str(root), augmented=str(place / NAME), verbose=False)


def test_camera_twelve_is_read_as_camera_one(place: Path, tmp_path: Path) -> None:
    name = "0002_c12s1_000000_00.jpg"
    data = torchreid_reads(with_training_image(name, place, tmp_path))
    assert [item[2] for item in data.train if item[0].endswith(name)] == [0]


def test_a_test_set_with_camera_twelve_is_refused(place: Path, tmp_path: Path) -> None:
    """Or pairs of cameras 1 and 12 would not be compared."""
    root = with_training_image("0002_c2s9_000000_00.jpg", place, tmp_path)
    query = root / "market1501/query"
    (query / "0001_c1s1_000000_00.jpg").rename(query / "0001_c12s1_000000_00.jpg")
    with pytest.raises(UserError, match=r"cannot read a person or camera .*; renumber"):
        PIDMAugmentedDataset(str(root), augmented=str(place / NAME), verbose=False)


def test_only_jpg_is_read(place: Path, tmp_path: Path) -> None:
    root = with_training_image("0002_c1s9_000000_00.jpeg", place, tmp_path)
    assert len(torchreid_reads(root).train) == 72


def test_folder_that_looks_like_person_and_camera_is_refused(place: Path, tmp_path: Path) -> None:
    root = tmp_path / "run7_c2"
    shutil.copytree(place / "market1501", root / "market1501")
    assert {item[1:3] for item in torchreid_reads(root).query} == {(7, 1)}
    with pytest.raises(UserError, match=r"'7_c2' in this path; rename that folder"):
        PIDMAugmentedDataset(str(root), augmented=str(place / NAME), verbose=False)
    folder = root / NAME
    render_all(planned(place, per_image=1), folder)
    assert len(PIDMAugmentedDataset(str(place), augmented=str(folder), verbose=False)) == 72
