"""What a generator saw of a data set, and the refusal of one that saw its test people."""

from __future__ import annotations

from pathlib import Path

import pytest
from people import draw_person, make_market

from pidm_core import (
    BAD_DATA,
    PIDMConfig,
    Seen,
    UserError,
    content_key,
    encode_jpeg,
    read_market1501,
    toy_market,
    write_bytes,
    write_json,
)
from pidm_core.seen import read_seen, write_seen
from pidm_reid.leaks import generator_saw, read_contents, refuse_overlap


def images(market: Path, subset: str) -> dict[str, str]:
    folder = market / "market1501" / subset
    return {path.name: content_key(path) for path in sorted(folder.iterdir())}


def saw(market: Path, *seen: Seen, real: set[str] | None = None) -> str:
    contents = read_contents(market)
    return generator_saw("runs/x", contents, real=real or set(), seen=seen)


def test_what_a_generator_saw_is_told_by_content(market: Path) -> None:
    train = images(market, "bounding_box_train")
    real = set(sorted(train)[:20])
    some = Seen("copy_of_it", "real", {f"x_{name}": train[name] for name in sorted(train)[:5]})
    whole = Seen("market1501", "real", train)
    drawn = Seen("toy", "drawn", {"0001_c1s1_000001_00.jpg": "0123"})
    other = Seen("duke", "real", {"0001_c1s1_000001_00.jpg": "4567"})
    assert saw(market, some, real=real) == "D_tr"  # whatever the files are called
    assert saw(market, whole, real=real) == "all train"
    assert saw(market, drawn, some, real=real) == "drawn people + D_tr"
    assert saw(market, drawn, drawn, whole, real=real) == "drawn people + all train"
    assert saw(market, other) == "external"
    mixed = Seen("toy", "drawn", {**train, "0900_c1s1_000001_00.jpg": "0123"})
    assert saw(market, mixed, real=real) == "drawn people + all train"
    assert saw(market, Seen("runs/old", "unknown", {}), some, real=real) == "unknown + D_tr"


def test_one_real_image_among_drawn_ones_makes_a_real_data_set(
    market: Path, tmp_path: Path
) -> None:
    toy_market.make(tmp_path / "toy", preset="tiny")
    drawn = read_market1501(tmp_path / "toy")[:3]
    config = PIDMConfig(data="mixed")
    for name, records in (("drawn", drawn), ("mixed", [*drawn, read_market1501(market)[-1]])):
        write_seen(tmp_path / name, config, records, begun=False)
    kinds = [seen.kind for name in ("drawn", "mixed") for seen in read_seen(tmp_path / name) or []]
    assert kinds == ["drawn", "real"]


def test_a_generator_without_a_record_is_unknown(market: Path, tmp_path: Path) -> None:
    contents = read_contents(market)
    assert generator_saw(str(tmp_path / "run"), contents, real=[]) == "unknown"


@pytest.mark.parametrize("name", ["./toy_market", "toy_market/", "{here}/toy_market"])
def test_a_path_means_the_run_there_and_not_the_bundled_model(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    query = images(market, "query")
    seen = [{"data": "market1501", "kind": "real", "images": query}]
    write_json(tmp_path / "toy_market" / "seen.json", seen)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="images of query and gallery"):
        generator_saw(name.format(here=tmp_path), read_contents(market), real=[])


def test_the_bundled_model_saw_drawn_people_and_nobody_of_a_demo(drawn_people: Path) -> None:
    assert generator_saw("toy_market", read_contents(drawn_people), real=[]) == "drawn people"


@pytest.mark.parametrize("subset", ["query", "bounding_box_test"])
def test_a_generator_that_saw_a_test_image_is_refused(market: Path, subset: str) -> None:
    name, key = sorted(images(market, subset).items())[-1]
    with pytest.raises(
        UserError, match=f"1 images of query and gallery, such as {subset}/{name}"
    ) as error:
        saw(market, Seen("elsewhere", "real", {"renamed.jpg": key}))
    assert error.value.code == BAD_DATA


def test_a_generator_that_saw_a_test_person_of_the_same_data_set_is_refused(
    market: Path,
) -> None:
    """Enlarged or compressed anew, the image has another content; its name has the person."""
    train = images(market, "bounding_box_train")
    leaked = {**train, "0003_c2s1_000777_00.jpg": "another content"}
    with pytest.raises(UserError, match="1 people of query and gallery, such as 3"):
        saw(market, Seen("market1501", "real", leaked))
    foreign = Seen("duke", "real", {"0003_c2s1_000777_00.jpg": "another content"})
    assert saw(market, foreign) == "external"  # its 0003 is somebody else
    distractor = {**train, "0000_c2s1_000777_00.jpg": "another content"}
    assert saw(market, Seen("market1501", "real", distractor)) == "external + all train"


def test_a_generator_that_saw_a_resized_copy_is_known_by_the_names(market: Path) -> None:
    train = {name: f"resized {key}" for name, key in images(market, "bounding_box_train").items()}
    assert saw(market, Seen("small", "real", train)) == "external"
    tested = {**train, "0003_c2s1_000777_00.jpg": "resized"}
    with pytest.raises(UserError, match="was trained on 1 people of query and gallery"):
        saw(market, Seen("small", "real", tested))
    assert saw(market, Seen("other world", "drawn", tested)) == "drawn people"


def test_copies_within_the_training_set_do_not_make_a_strict_generator_an_all_seeing_one(
    tmp_path: Path,
) -> None:
    market = make_market(tmp_path)
    train = images(market, "bounding_box_train")
    name = min(train)
    twin = market / "market1501/bounding_box_train" / name.replace("_00.jpg", "_01.jpg")
    write_bytes(twin, (twin.parent / name).read_bytes())
    assert saw(market, Seen("x", "real", {name: train[name]}), real={name}) == "D_tr"


def test_an_image_in_both_training_and_test_set_is_refused(tmp_path: Path) -> None:
    market = make_market(tmp_path)
    refuse_overlap(read_contents(market), market)
    data = encode_jpeg(draw_person(55, 0))
    write_bytes(market / "market1501/bounding_box_train/0002_c1s1_000900_00.jpg", data)
    write_bytes(market / "market1501/query/0001_c1s1_000900_00.jpg", data)
    with pytest.raises(UserError, match="1 images of query and gallery are in the training set"):
        refuse_overlap(read_contents(market), market)


def test_a_training_set_without_a_test_set_is_read(tmp_path: Path) -> None:
    data = encode_jpeg(draw_person(2, 0))
    write_bytes(tmp_path / "market1501/bounding_box_train/0002_c1s1_000000_00.jpg", data)
    contents = read_contents(tmp_path)
    assert (len(contents.train), len(contents.test)) == (1, 0)
