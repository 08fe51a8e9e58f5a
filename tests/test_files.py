"""Files from outside, good and bad, and files of ours that are there whole or not at all."""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pidm_core import files
from pidm_core.files import (
    BAD_DATA,
    DONE,
    ENVIRONMENT,
    INTERNAL,
    INTERRUPTED,
    TERMINATED,
    USAGE,
    UserError,
    encode_jpeg,
    encode_png,
    load_image,
    read_json,
    sha256,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).parent.parent
GREY = np.full((24, 16, 3), 120, np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file whose header promises a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def noise(size: tuple[int, int] = (64, 32)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


# ---------------------------------------------------------------- images that are refused


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        encode_jpeg(noise())[: len(encode_jpeg(noise())) // 2],
        encode_png(noise())[: len(encode_png(noise())) // 2],
        encode_jpeg(noise())[:200] + b"\0" * 500,
        b"\xff\xd8\xff\xe0",
        encode_png(noise((1, 1))),
        encode_png(noise((1, 400))),
        encode_png(noise((400, 10))),
        png(20_000, 20_000, zlib.compress(b"\0" * 1000)),
        png(7_000, 6_000),
    ],
    ids=[
        *("empty", "html", "lfs", "half-jpeg", "half-png", "garbage-body", "header-only"),
        *("1x1", "1x400", "aspect-40", "bomb", "42-mpx"),
    ],
)
def test_a_broken_image_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a b'é.jpg"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        load_image(path)
    assert caught.value.code == BAD_DATA
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_jpeg_without_its_last_bytes_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(noise())[:-cut])
    with pytest.raises(UserError, match="truncated"):
        load_image(tmp_path / "a.jpg")


def in_time(action: Callable[[], object], seconds: float = 2.0) -> None:
    """Run `action`, which shall raise UserError, and fail if it hangs."""
    caught: list[BaseException] = []

    def body() -> None:
        try:
            action()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    assert isinstance(caught[0], UserError)


def test_pipes_folders_and_dangling_links_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in ("fifo.jpg", "folder.jpg", "link.jpg", "loop.jpg", "none.jpg", "/dev/zero"):
        in_time(lambda name=name: load_image(tmp_path / name))


# ---------------------------------------------------------------- images that are read


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_of_the_same_grey(tmp_path: Path, mode: str) -> None:
    half = Image.fromarray(np.full((24, 16), 128, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((24, 16), 128 * 257, np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.full((24, 16), 128 * 257, np.int32))
    elif mode == "F":
        ramp = np.full((24, 16), 128 / 255, np.float32)
        ramp[0, 0] = 1.0
        image = Image.fromarray(ramp)
    else:
        image = half.convert(mode)
    suffix = "tif" if mode in ("I", "F") else "png"
    loaded = load_image(saved(tmp_path / f"a.{suffix}", image))
    assert (loaded.shape, loaded.dtype) == ((24, 16, 3), np.uint8)
    expected = [127, 128, 129] if mode != "1" else [0, 255]
    assert np.isin(loaded[1:], expected).all()


@pytest.mark.parametrize(("top", "kind"), [(255, np.int32), (100, np.float32), (255, np.float32)])
def test_grey_levels_of_an_unknown_scale_are_refused(
    tmp_path: Path, top: int, kind: type[np.generic]
) -> None:
    ramp = np.linspace(0, top, 24 * 16).reshape(24, 16).astype(kind)
    with pytest.raises(UserError, match="of an unknown scale"):
        load_image(saved(tmp_path / "a.tif", Image.fromarray(ramp)))


def test_cmyk_gif_progressive_and_a_png_called_jpg(tmp_path: Path) -> None:
    grey = Image.fromarray(GREY)
    frames = [Image.fromarray(np.full((24, 16, 3), v, np.uint8)) for v in (120, 250)]
    paths = [
        saved(tmp_path / "cmyk.jpg", grey.convert("CMYK"), quality=95),
        saved(tmp_path / "two.gif", frames[0], save_all=True, append_images=frames[1:]),
        saved(tmp_path / "progressive.jpg", grey, progressive=True),
        saved(tmp_path / "png.jpg", grey, format="PNG"),
        saved(tmp_path / "-a 'é\n.JPG", grey),
    ]
    for path in paths:
        assert np.abs(load_image(path).astype(int) - 120).max() <= 2, path


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((24, 16, 4), np.uint8)
    pixels[12:, :, 3] = 255  # upper half clear, lower half black
    loaded = load_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert (loaded[:12] == 255).all()
    assert (loaded[12:] == 0).all()
    palette = Image.fromarray(np.zeros((24, 16), np.uint8)).convert("P")
    assert (load_image(saved(tmp_path / "p.png", palette, transparency=0)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:8, :5] = 255
    undo = {  # how a camera stores the upright picture, by EXIF's definition
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    np.testing.assert_array_equal(load_image(saved(tmp_path / "a.png", stored, exif=exif)), upright)


def test_broken_metadata_does_not_matter(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.jpg",
        Image.fromarray(GREY),
        exif=b"Exif\0\0II*\0\xff\xff",
        icc_profile=b"x" * 99,
    )
    assert load_image(path).shape == GREY.shape


def test_encoding_keeps_the_picture(tmp_path: Path) -> None:
    image = np.array(Image.fromarray(noise((8, 4))).resize((32, 64), Image.Resampling.BICUBIC))
    assert (np.array(Image.open(io.BytesIO(encode_png(image)))) == image).all()
    jpeg = Image.open(io.BytesIO(encode_jpeg(image)))
    assert np.abs(np.asarray(jpeg).astype(int) - image).mean() < 2
    assert {layer[1:3] for layer in jpeg.layer} == {(1, 1)}  # 4:4:4


# ---------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "a.bin"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, fail)
            with pytest.raises(OSError, match="No space"):
                write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~files._UMASK


def test_files_are_for_whom_the_umask_says(tmp_path: Path) -> None:
    code = "import sys; from pidm_core import write_bytes; write_bytes(sys.argv[1], b'')"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=True, umask=0o077)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_json_is_strict_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"é": [1, 0.1, None]})
    assert read_json(path) == {"é": [1, 0.1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    for text in ("", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', "[" * 200_000, "{"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
            read_json(path)
    path.write_bytes("{}".encode("utf-16"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(path)
    path.write_text("\ufeff{}")
    assert read_json(path) == {}
    with path.open("wb") as file:
        file.truncate(files.MAX_JSON_BYTES + 1)
    with pytest.raises(UserError, match="larger than 64 MiB"):
        read_json(path)
    os.mkfifo(tmp_path / "fifo")
    in_time(lambda: read_json(tmp_path / "fifo"))


def test_sha256_of_bytes_and_files(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(b"abc") == sha256(tmp_path / "abc") == expected


# ---------------------------------------------------------------- leaving a tool


def left(main: Callable[[list[str] | None], int]) -> int:
    """The exit code that `run` leaves with; the handler of SIGTERM is as before."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as leaving:
            files.run(main)
    finally:
        signal.signal(signal.SIGTERM, handler)
    code: int = leaving.value.code
    return code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            UserError("a.jpg: broken; remove it", BAD_DATA),
            BAD_DATA,
            "error: a.jpg: broken; remove it",
        ),
        (UserError("what"), USAGE, "error: what"),
        (KeyboardInterrupt(), INTERRUPTED, "error: interrupted; the same command goes on"),
        (KeyboardInterrupt("nothing is kept"), INTERRUPTED, "error: interrupted; nothing is kept"),
        (MemoryError(), ENVIRONMENT, "error: out of memory"),
        (OSError(28, "No space left"), ENVIRONMENT, "error: [Errno 28] No space left; free some"),
        (ZeroDivisionError("x"), INTERNAL, "error: internal error: ZeroDivisionError: x"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(_: list[str] | None) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["tool"])
    assert left(main) == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["tools/verify.py", "nosuch"], BAD_DATA),
        (["tools/verify.py", "--nosuch"], USAGE),
        (["tools/make_toy_market.py", "--dry-run"], ENVIRONMENT),
    ],
)
def test_the_exit_code_stands_where_the_log_is_on_a_full_disk(
    command: list[str], code: int
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=full, stderr=full, check=False
        )
    assert done.returncode == code


def test_what_only_lost_its_reader_is_done() -> None:
    tool = [sys.executable, "tools/make_toy_market.py", "--dry-run"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(tool, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (DONE, b"")


def test_a_limit_of_time_is_a_sigterm_of_ones_own_that_can_be_taken_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool"])

    def main(_: list[str] | None) -> int:
        files.stop_after(1e-4)
        files.stop_after(0)
        time.sleep(0.05)  # nothing happens
        files.stop_after(1e-4)
        time.sleep(60)
        return DONE

    assert left(main) == TERMINATED
    assert capfd.readouterr().err == "the time is up; the same command goes on\n"
    with pytest.raises(UserError, match="minutes -1 is negative"):
        files.stop_after(-1)


def test_a_kept_array_comes_back_or_is_known_to_be_damaged(tmp_path: Path) -> None:
    path, array = tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(3, 4)
    assert files.load_array(path) is None
    files.save_array(path, array)
    np.testing.assert_array_equal(files.load_array(path), array)
    np.testing.assert_array_equal(np.load(path), array)
    whole = path.read_bytes()
    flipped = bytes([*whole[:140], whole[140] ^ 1, *whole[141:]])  # a bit of a number
    for damaged in (b"", whole[:-1], whole[:140], flipped):
        path.write_bytes(damaged)
        assert files.load_array(path) is None


def test_debug_shows_the_traceback_and_success_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", "--debug"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as leaving:
            files.run(lambda _: 1 // 0)
        assert leaving.value.code == INTERNAL
        assert "Traceback" in capsys.readouterr().err
        with pytest.raises(SystemExit) as leaving:
            files.run(lambda _: DONE)
        assert leaving.value.code == DONE
        assert capsys.readouterr().err == ""
    finally:
        signal.signal(signal.SIGTERM, handler)
