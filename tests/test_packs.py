"""Packs: what goes in comes out; what is altered, cut off or hostile is refused with one line."""

from __future__ import annotations

import errno
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pidm_core import BAD_DATA, UserError, read_keypoints, read_market1501, toy_market, write_bytes
from pidm_core import packs as room
from pidm_core.packs import PARTS, market_files, pieces, unpack, write_pack


@pytest.fixture(scope="module")
def packed(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tar.xz and test.tar.xz of the made-up market; not to be changed."""
    home = tmp_path_factory.mktemp("packs")
    for part in PARTS:
        write_pack(home / f"{part}.tar.xz", market_files(market, part), mib=1)
    return home


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path in there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_data_set_comes_out_as_it_went_in(market: Path, packed: Path, tmp_path: Path) -> None:
    new = unpack(packed / "train.tar.xz", tmp_path / "data")
    assert [path.name for path in new] == ["market-annotation-train.csv", "bounding_box_train"]
    assert len(read_market1501(tmp_path / "data")) == 36
    unpack(packed / "test.tar.xz", tmp_path / "data")
    assert contents(tmp_path / "data") == contents(market / "market1501")
    assert read_keypoints(tmp_path / "data/market-annotation-train.csv")


def test_images_alone_are_packed_and_drawn_people_stay_known_as_drawn(tmp_path: Path) -> None:
    toy_market.make(tmp_path / "toy", preset="tiny")
    home = tmp_path / "toy/market1501"
    write_bytes(home / "query/Thumbs.db", b"as in the real one")
    for part, joints in (("train", "market-annotation-train.csv"), ("test", "toy_market.json")):
        files = market_files(tmp_path / "toy", part)
        assert {joints, "toy_market.json"} <= files.keys()
        assert not [name for name in files if name.endswith(".db")]


def test_a_data_set_without_joints_is_refused(market: Path, tmp_path: Path) -> None:
    (tmp_path / "bounding_box_train").symlink_to(market / "market1501/bounding_box_train")
    with pytest.raises(UserError, match=r"no market-annotation-train\.csv"):
        market_files(tmp_path, "train")


def test_the_same_files_give_the_same_bytes(market: Path, packed: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "a.tar.xz", market_files(market, "train"), mib=1)
    assert (tmp_path / "a.tar.xz").read_bytes() == (packed / "train.tar.xz").read_bytes()


def test_what_is_there_stays_as_it_is(packed: Path, tmp_path: Path) -> None:
    write_bytes(tmp_path / "bounding_box_train/own.txt", b"mine")
    assert [path.name for path in unpack(packed / "train.tar.xz", tmp_path)] == [
        "market-annotation-train.csv"
    ]
    assert unpack(packed / "train.tar.xz", tmp_path) == []
    assert [path.name for path in (tmp_path / "bounding_box_train").iterdir()] == ["own.txt"]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_large_pack_is_cut_in_pieces_that_are_a_pack_when_all_are_there(tmp_path: Path) -> None:
    big, path = tmp_path / "big", tmp_path / "big.tar.xz"
    write_bytes(big, random.Random(0).randbytes(3 << 19))
    files = {"folder/big": big}
    written = write_pack(path, files, mib=1)
    assert [p.name for p in written] == [f"big.tar.xz.{k}of2" for k in (1, 2)]
    assert max(p.stat().st_size for p in written) == 1 << 20
    assert pieces(path) == written
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out/folder/big").read_bytes() == big.read_bytes()
    written[1].rename(tmp_path / "elsewhere")
    assert pieces(path) == []
    with pytest.raises(UserError, match="no such pack"):
        unpack(path, tmp_path / "out")
    assert write_pack(path, files, mib=9) == [path]  # nothing is left of the pieces
    assert not list(tmp_path.glob("big.tar.xz.*"))


def test_a_pack_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(tmp_path / "small", b"small")
    write_bytes(tmp_path / "big", random.Random(0).randbytes(3 << 19))
    path = tmp_path / "out.tar.xz"
    write_pack(path, {"file": tmp_path / "small"}, mib=1)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "write_bytes", full)
    for name in ("small", "big"):  # one file, or pieces instead of it
        with pytest.raises(OSError, match="No space left"):
            write_pack(path, {"file": tmp_path / name}, mib=1)
        assert pieces(path) == [path]
    (new,) = unpack(path, tmp_path / "unpacked")
    assert new.read_bytes() == b"small"


def test_the_pieces_of_a_pack_are_found_whatever_it_is_called(tmp_path: Path) -> None:
    write_bytes(tmp_path / "big", random.Random(0).randbytes(3 << 19))
    path = tmp_path / "run[1].tar.xz"
    written = write_pack(path, {"big": tmp_path / "big"}, mib=1)
    assert len(written) == 2
    assert pieces(path) == written
    assert write_pack(path, {"big": tmp_path / "big"}, mib=9) == [path]
    assert [p.name for p in tmp_path.glob("run*")] == [path.name]


def hostile(name: str, **values: object) -> bytes:
    """A pack of one member that nobody honest writes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        info = tarfile.TarInfo(name)
        for key, value in values.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip, "altered, or no pack"),
        (lambda data: data[:-100], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data + data, "cut off, or not one pack"),
        (lambda _: b"", "cut off"),
        (lambda _: b"no pack" * 9, "altered, or no pack"),
        (lambda _: lzma.compress(b"no tar" * 99 + bytes(1024)), "not a pack of files"),
        (lambda data: lzma.compress(lzma.decompress(data)[:5000]), "cut off"),
        (lambda _: lzma.compress(bytes(3 << 20)), "larger than 2 MiB inside"),
        (lambda _: hostile("../out"), "leaves the data folder"),
        (lambda _: hostile("query/../../out"), "leaves the data folder"),
        (lambda _: hostile("/etc/out"), "leaves the data folder"),
        (lambda _: hostile("a\nb"), "leaves the data folder"),
        (lambda _: hostile("x", type=tarfile.SYMTYPE, linkname="/etc"), "not a plain file"),
        (lambda _: hostile("x", type=tarfile.LNKTYPE, linkname="y"), "not a plain file"),
        (lambda _: hostile("x", type=tarfile.DIRTYPE), "not a plain file"),
        (lambda _: hostile("x", type=tarfile.FIFOTYPE), "not a plain file"),
        (
            lambda _: hostile(
                "x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 15}
            ),
            "not a plain file",
        ),
    ],
)
def test_a_bad_pack_is_refused_with_one_line_and_nothing_is_unpacked(
    spoil: Callable[[bytes], bytes],
    message: str,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "LIMIT_BYTES", 2 << 20)
    path = tmp_path / "train.tar.xz"
    write_bytes(path, spoil((packed / "train.tar.xz").read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        unpack(path, tmp_path / "data")
    assert error.value.code == BAD_DATA
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["train.tar.xz"]
