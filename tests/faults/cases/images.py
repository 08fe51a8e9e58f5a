"""Images: broken, odd, hostile; and folders of them."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.cases import BAD_DATA, DONE, Case, Files, reading, sparse
from pidm_core import encode_jpeg, encode_png, sha256

SIZE = (24, 16)  # px
NOISE = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
GREY = np.full((*SIZE, 3), 120, np.uint8)
JPEG, PNG = encode_jpeg(NOISE), encode_png(NOISE)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
HTML = b"<!DOCTYPE html><html><title>404</title></html>"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file of a kind."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, data: bytes = b"") -> bytes:
    """A PNG file whose header promises an RGB image of that size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_text(*chunks: bytes) -> bytes:
    """A good grey PNG with chunks of metadata after its header."""
    whole = saved(Image.fromarray(GREY), "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def grey(value: float, kind: type) -> Image.Image:
    """An image of one value in an unusual type."""
    return Image.fromarray(np.full(SIZE, value, kind))


def shown(pixels: np.ndarray) -> str:
    """What read.py prints of an image."""
    digest = sha256(np.ascontiguousarray(pixels).tobytes())[:8]
    return f"{pixels.shape[0]}x{pixels.shape[1]} mean {pixels.mean():.0f} {digest}"


def mean(value: int) -> str:
    """What read.py prints of a small grey image."""
    return f"{SIZE[0]}x{SIZE[1]} mean {value}"


# ---------------------------------------------------------------- refused

REFUSED: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "the file is empty"),
    "web page as .jpg": (HTML, "not a whole image"),
    "text as .jpg": (b"hello", "not a whole image"),
    "Git-LFS pointer as .jpg": (LFS, "not a whole image"),
    "JPEG, half of it": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG without its last 2 bytes": (JPEG[:-2], "truncated"),
    "JPEG without its last byte": (JPEG[:-1], "truncated"),
    "JPEG, header only": (b"\xff\xd8\xff\xe0", "not a whole image"),
    "JPEG, header and zeros": (JPEG[:200] + b"\0" * 500, "not a whole image"),
    "PNG, half of it": (PNG[: len(PNG) // 2], "not a whole image"),
    "PNG with garbage for pixels": (png(64, 64, data=b"garbage" * 9), "not a whole image"),
    "PNG with too few pixels": (png(64, 64, data=zlib.compress(b"\0" * 9)), "not a whole image"),
    "PNG whose header is altered": (PNG[:20] + b"\xff" + PNG[21:], "not a whole image"),
    "GIF, half of it": (saved(Image.fromarray(NOISE), "GIF")[:900], "not a whole image"),
    "WebP, half of it": (saved(Image.fromarray(NOISE), "WEBP")[:300], "not a whole image"),
    "BMP, half of it": (saved(Image.fromarray(NOISE), "BMP")[:900], "not a whole image"),
    "TIFF, half of it": (saved(Image.fromarray(NOISE), "TIFF")[:900], "not a whole image"),
    "1 x 1 px": (encode_png(NOISE[:1, :1]), "outside the limits"),
    "7 px wide": (encode_png(NOISE[:, :7]), "outside the limits"),
    "1 x 4000 px": (saved(Image.new("RGB", (1, 4000)), "PNG"), "outside the limits"),
    "4000 x 1 px": (saved(Image.new("RGB", (4000, 1)), "PNG"), "outside the limits"),
    "aspect just over 1:8": (saved(Image.new("L", (8, 65)), "PNG"), "outside the limits"),
    "100 Mpx in a few kB": (saved(Image.new("1", (10_000, 10_000)), "PNG"), "outside the limits"),
    "20,000 x 20,000 bomb": (png(20_000, 20_000, data=zlib.compress(b"\0" * 10**6)), "not a"),
    "42 Mpx": (png(7000, 6000), "outside the limits"),
    "JPEG that says 65,500 x 65,500": (
        JPEG.replace(struct.pack(">HH", 64, 32), struct.pack(">HH", 65_500, 65_500), 1),
        "not a whole image",
    ),
    "GIF that says 65,535 x 65,535": (b"GIF89a" + b"\xff" * 4 + b"\0\0\0;", "not a whole image"),
    "TIFF that says 2^31 px": (
        b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
        + struct.pack("<HHII", 256, 4, 1, 2**31) + struct.pack("<HHII", 257, 4, 1, 2**31)
        + b"\0" * 4,
        "not a whole image",
    ),
    "PNG with a bomb of compressed text": (
        with_text(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (1 << 28)))), "not a whole image",
    ),
    "PNG with a bomb of a colour profile": (
        with_text(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * (1 << 28)))), "not a whole image",
    ),
    "float image with NaN": (saved(grey(np.nan, np.float32), "TIFF"), "unknown scale"),
    "float image with infinity": (saved(grey(np.inf, np.float32), "TIFF"), "unknown scale"),
    "float image below zero": (saved(grey(-1, np.float32), "TIFF"), "unknown scale"),
    "32-bit image beyond 16 bits": (saved(grey(70_000, np.int32), "TIFF"), "unknown scale"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a whole image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not a whole image"),
    "PDF": (b"%PDF-1.4\n", "not a whole image"),
    "Photoshop": (b"8BPS\0\x01" + b"\0" * 64, "not a whole image"),
    "PPM, a kind not on the list": (saved(Image.fromarray(GREY), "PPM"), "not a whole image"),
    "ICO, a kind not on the list": (saved(Image.fromarray(GREY), "ICO"), "not a whole image"),
    "TGA, a kind not on the list": (saved(Image.fromarray(GREY), "TGA"), "not a whole image"),
    "JPEG 2000, a kind not on the list": (
        saved(Image.fromarray(GREY), "JPEG2000"), "not a whole image",
    ),
}  # fmt: skip


# ---------------------------------------------------------------- read as they should be


def _transparent() -> bytes:
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[12:, :, 3] = 255  # upper half clear: white; lower half black
    return saved(Image.fromarray(pixels), "PNG")


def _frames() -> bytes:
    first, second = (Image.fromarray(np.full((*SIZE, 3), v, np.uint8)) for v in (120, 250))
    return saved(first, "GIF", save_all=True, append_images=[second])


def _broken_exif() -> bytes:
    return saved(Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0II*\0\xff\xff", icc_profile=b"x" * 9)


def _comments() -> bytes:
    jpeg = saved(Image.fromarray(GREY), "JPEG", quality=95)
    return jpeg[:2] + (b"\xff\xfe\xff\xff" + b"x" * 65_533) * 40 + jpeg[2:]


GREYS: dict[str, tuple[bytes, int]] = {
    "CMYK": (saved(Image.fromarray(GREY).convert("CMYK"), "JPEG", quality=95), 120),
    "grey, 8 bits": (saved(grey(120, np.uint8), "PNG"), 120),
    "grey with alpha": (saved(grey(120, np.uint8).convert("LA"), "PNG"), 120),
    "palette": (saved(grey(120, np.uint8).convert("P"), "PNG"), 120),
    "palette, its colour transparent": (
        saved(grey(0, np.uint8).convert("P"), "PNG", transparency=0), 255,
    ),
    "RGBA, half of it clear": (_transparent(), 128),
    "1 bit, white": (saved(Image.new("1", SIZE[::-1], 1), "PNG"), 255),
    "16 bits, middle grey": (saved(grey(128 * 257, np.uint16), "PNG"), 128),
    "32-bit TIFF, middle grey": (saved(grey(128 * 257, np.int32), "TIFF"), 128),
    "float TIFF, white": (saved(grey(1, np.float32), "TIFF"), 255),
    "16-bit RGB PNG": (
        png(16, 24, depth=16, data=zlib.compress((b"\0" + b"\x80\0" * 48) * 24)), 128,
    ),
    "animated GIF, its first frame": (_frames(), 120),
    "progressive JPEG": (saved(Image.fromarray(GREY), "JPEG", progressive=True, quality=95), 120),
    "PNG named .jpg": (saved(Image.fromarray(GREY), "PNG"), 120),
    "WebP named .jpg": (saved(Image.fromarray(GREY), "WEBP", lossless=True), 120),
    "broken EXIF and colour profile": (_broken_exif(), 120),
    "EXIF orientation 99": (
        saved(Image.fromarray(GREY), "PNG", exif=b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0c"
              + b"\0\0\0\0\0\0"), 120,
    ),
    "2.6 MB of comments": (_comments(), 120),
    "8 MB of text in a PNG": (with_text(chunk(b"tEXt", b"a\0" + b"x" * (8 << 20))), 120),
    "5 MB of EXIF in a PNG": (with_text(chunk(b"eXIf", b"MM\0*" + b"x" * (5 << 20))), 120),
    "bytes after the end": (saved(Image.fromarray(GREY), "PNG") + b"\0" * 9999, 120),
}  # fmt: skip


def turned() -> Iterable[Case]:
    """The eight ways in which a camera stores an upright picture, by EXIF's definition."""
    upright = np.zeros((*SIZE, 3), np.uint8)
    upright[:8, :5] = 255
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    for orientation, stored in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = Image.fromarray(np.ascontiguousarray(stored(upright)))
        files: Files = {"a.png": saved(pixels, "PNG", exif=exif.tobytes())}
        name = f"EXIF orientation {orientation}, turned once"
        yield Case(name, files, reading("image", "a.png"), DONE, shown(upright))


# ---------------------------------------------------------------- what is no file


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "a.jpg")


def _socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the paths of sockets are short
    socket.socket(socket.AF_UNIX).bind("a.jpg")
    os.chdir(here)


def _link(to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "a.jpg").symlink_to(to)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe named .jpg": _fifo,
    "socket named .jpg": _socket,
    "folder named .jpg": lambda folder: (folder / "a.jpg").mkdir(),
    "dangling link": _link("nowhere"),
    "link to itself": _link("a.jpg"),
    "link to an endless device": _link("/dev/zero"),
    "link to a terminal": _link("/dev/tty"),
    "image that vanished": lambda folder: None,
}


# ---------------------------------------------------------------- names and folders

_EMOJI = "\U0001f469\u200d\U0001f680.jpg"
NAMES = {
    "space and quotes": "a b'\"c.jpg",
    "emoji": _EMOJI,
    "leading dash": "-a.jpg",
    "255 bytes": "a" * 251 + ".jpg",
    "upper-case ending": "A.JPG",
    "percent and braces": "%s{0}$HOME.jpg",
}
TRAIN = "market1501/bounding_box_train"
MARKET = {f"{TRAIN}/{pid:04d}_c{c}s1_{k:06d}_00.jpg": JPEG for pid in (2, 7) for c in (1, 2)
          for k in range(2)}  # fmt: skip


def _odd_bytes(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data/a.jpg").write_bytes(JPEG)
    for name in (b"new\nline.jpg", b"latin\xe9.jpg", b"tab\t.jpg"):
        (os.fsencode(folder / "data") + b"/" + name).decode("utf-8", "surrogateescape")
        Path(os.fsdecode(os.fsencode(folder / "data") + b"/" + name)).write_bytes(JPEG)


def _strays(folder: Path) -> None:
    Case("", MARKET, (), 0, "").make(folder)
    (folder / TRAIN / "0009_c1s1_000000_00.jpg").symlink_to("nowhere")
    (folder / TRAIN / "0010_c1s1_000000_00.jpg").mkdir()


def _loop(folder: Path) -> None:
    (folder / "data/deep").mkdir(parents=True)
    (folder / "data/deep/up").symlink_to("..")
    (folder / "data/deep/a.jpg").write_bytes(JPEG)


FOLDERS = (
    *(Case(f"name: {what}", {f"data/{name}": JPEG}, reading("image", f"data/{name}"), DONE, "64x32")
      for what, name in NAMES.items()),
    Case("names of the same letters, composed and not",
         {"data/\u00e9.jpg": JPEG, "data/e\u0301.jpg": JPEG}, reading("images", "data"), DONE,
         "e\u0301.jpg \u00e9.jpg"),
    Case("names that differ in case alone", {"data/A.jpg": JPEG, "data/a.jpg": JPEG},
         reading("images", "data"), DONE, "A.jpg a.jpg"),
    Case("one name in two folders", {"data/x/a.jpg": JPEG, "data/y/a.jpg": JPEG},
         reading("images", "data"), DONE, "x/a.jpg y/a.jpg"),
    Case("line ends and broken UTF-8 in names", _odd_bytes, reading("images", "data"), DONE,
         "a.jpg\n"),
    Case("files of desktops and downloads",
         {f"data/{n}": b"x" for n in ("Thumbs.db", ".DS_Store", "._a.jpg", "b.jpg.part")}
         | {"data/a.jpg": JPEG}, reading("images", "data"), DONE, "a.jpg\n"),
    Case("folders that go round in a circle", _loop, reading("images", "data"), DONE,
         "deep/a.jpg\n"),
    Case("no images in a folder", {"data/readme.txt": b"x"}, reading("images", "data"), BAD_DATA,
         "no images"),
    Case("no such folder", {}, reading("people", "data"), BAD_DATA, "no such folder"),
    Case("a file for a folder", {"data": b"x"}, reading("people", "data"), BAD_DATA,
         "no such folder"),
    Case("dangling link and folder among images", _strays, reading("market", "."), DONE,
         "8 images"),
    Case("a name without a person", MARKET | {f"{TRAIN}/holiday.jpg": JPEG},
         reading("market", "."), BAD_DATA, "must begin with person and camera"),
    Case("DukeMTMC by its folder", {"DukeMTMC-reID/bounding_box_train/0001_c1_f1.jpg": JPEG},
         reading("market", "DukeMTMC-reID"), BAD_DATA, "withdrawn"),
    Case("DukeMTMC by its names", {"x/bounding_box_train/0001_c2_f0046182.jpg": JPEG},
         reading("market", "x"), BAD_DATA, "withdrawn"),
    Case("test image among the training images",
         MARKET | {"market1501/query/0003_c1s1_000000_00.jpg": JPEG},
         reading("leaks", "."), BAD_DATA, "in the training set as well"),
    Case("no keypoint file beside the images", MARKET, reading("people", "."), BAD_DATA,
         "no market-annotation-train.csv"),
)  # fmt: skip

CASES = (
    *(Case(f"image: {name}", {"a.jpg": data}, reading("image", "a.jpg"), BAD_DATA, why)
      for name, (data, why) in REFUSED.items()),
    *(Case(f"image: {name}", {"a.jpg": data}, reading("image", "a.jpg"), DONE, mean(value))
      for name, (data, value) in GREYS.items()),
    *turned(),
    Case("image: 200 MB of nothing", sparse("a.jpg", 200 << 20), reading("image", "a.jpg"),
         BAD_DATA, "larger than 128 MiB"),
    Case("image: aspect of exactly 1:8", {"a.jpg": saved(Image.new("L", (8, 64)), "PNG")},
         reading("image", "a.jpg"), DONE, "64x8 mean 0"),
    *(Case(name, make, reading("image", "a.jpg"), BAD_DATA, "no such image file")
      for name, make in NO_FILES.items()),
    *FOLDERS,
)  # fmt: skip
