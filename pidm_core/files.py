"""Files from outside and files of ours: one error type, safe reading, atomic writing, hashes."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DONE, SKIPPED, USAGE, BAD_DATA, ENVIRONMENT, INTERNAL = range(6)
"""Exit codes: done, done with skipped items, usage, bad input data, environment, internal."""
INTERRUPTED, TERMINATED = 130, 143

MAX_PIXELS = 40_000_000
MAX_ASPECT = 8
MIN_SIDE_PX = 8
MAX_IMAGE_BYTES = 128 << 20  # of a file: 40 Mpx without any compression
MAX_JSON_BYTES = 64 << 20
MAX_DEPTH = 32  # of lists and sections in one another
os.umask(_UMASK := os.umask(0))  # it can only be read by setting it
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that break lines and names: controls, ends of lines, bytes that are not UTF-8."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of the files in a folder that count as images of people, in lower case."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
GENERATED = (
    "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>"
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{TRAINED}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
"""XMP that calls an image the work of a trained algorithm, in IPTC's words."""


class UserError(Exception):
    """One line for the user: what is wrong, in which file, why, and what to do."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


# ---------------------------------------------------------------- images


def check_outputs(*files: str) -> None:
    """UserError for a file to write, given, where a folder is: before the work, not after it."""
    for file in files:
        if file and Path(file).is_dir():
            raise UserError(f"{file}: is a folder; give a file to write")


def load_image(path: str | Path, *, ground: int = 255) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB.

    First frame only; EXIF rotation applied; alpha over white, or over the grey level `ground`;
    16-bit and float scaled to 8 bit.
    Raises UserError (BAD_DATA) for anything that is not a whole image of a reasonable size.
    """
    return decode_image(read_image_file(path), str(path), ground=ground)


def read_image_file(path: str | Path) -> bytes:
    """The bytes of an image file; UserError (BAD_DATA) if it is none, or over 128 MiB."""
    path = Path(path)
    if not path.is_file():  # a FIFO or a device would block for ever
        raise UserError(f"{path}: no such image file", BAD_DATA)
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise UserError(f"{path}: larger than {MAX_IMAGE_BYTES >> 20} MiB, refused", BAD_DATA)
    return path.read_bytes()


def decode_image(data: bytes, name: str, *, ground: int = 255) -> np.ndarray:
    """Decode the bytes of an image file as `load_image` does; `name` is for the message."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and ICC blocks do not matter to us
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, name)
                image.load()
                return to_pixels(image, ground=ground)
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on broken bytes
        said = " ".join(str(error).split()) or type(error).__name__
        why = "the file is empty" if not data else f"not a whole image ({said})"
        raise UserError(f"{name}: {why}; replace or remove it", BAD_DATA) from error


def to_pixels(image: Image.Image, *, ground: int = 255) -> np.ndarray:
    """uint8 (H, W, 3) RGB of an opened image, as `load_image` makes it.

    Raises ValueError for grey levels of an unknown scale.
    """
    import numpy as np

    return np.asarray(_to_rgb(_upright(image), ground), dtype=np.uint8)


def _check_size(size: tuple[int, int], name: str) -> None:
    small, large = min(size), max(size)
    if small < MIN_SIDE_PX or large > MAX_ASPECT * small or small * large > MAX_PIXELS:
        raise UserError(
            f"{name}: {size[0]}x{size[1]} pixels is outside the limits "
            f"(side >= {MIN_SIDE_PX}, aspect <= {MAX_ASPECT}, {MAX_PIXELS // 10**6} Mpx)",
            BAD_DATA,
        )


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF block turns it, or as it is if that block is broken."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # metadata of any make
        return image


def _to_rgb(image: Image.Image, ground: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values: nearly every picture would come out white.
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        top = 65535.0 if image.mode != "F" else 1.0
        eight_bits = image.mode == "I" and 1 < high <= 255  # 32 bits that hold no more
        if eight_bits or not 0 <= low <= high <= top:  # NaN too
            raise ValueError(f"grey levels {low:g} to {high:g}, of an unknown scale")
        return Image.fromarray((values / top * 255.0).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, (ground, ground, ground, 255))
        return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def encode_jpeg(image: np.ndarray, quality: int = 95, *, generated: bool = False) -> bytes:
    """Encode uint8 (H, W, 3) as JPEG without chroma subsampling; if generated, its XMP says so."""
    mark = {"xmp": GENERATED.encode()} if generated else {}
    return _encode(image, format="JPEG", quality=quality, subsampling=0, **mark)


def encode_png(image: np.ndarray, *, generated: bool = False) -> bytes:
    """Encode uint8 (H, W, 3) as PNG; if generated, its XMP says so."""
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    if generated:
        mark.add_itxt("XML:com.adobe.xmp", GENERATED)
    return _encode(image, format="PNG", pnginfo=mark)


def _encode(image: np.ndarray, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()  # never save() to a path: on a full disk that succeeds and truncates
    Image.fromarray(image).save(buffer, **options)
    return buffer.getvalue()


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) to (height, width) in pixels, bicubic."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


# ---------------------------------------------------------------- bytes and JSON


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array of numbers (.npy and, behind it, a SHA-256), whole or not at all."""
    import numpy as np

    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_bytes(path, data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def load_array(path: Path) -> np.ndarray | None:
    """An array that `save_array` wrote; None if it is not there or damaged."""
    import numpy as np

    whole = path.read_bytes() if path.is_file() else b""
    data, digest = whole[:-32], whole[-32:]
    if not data or hashlib.sha256(data).digest() != digest:
        return None
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))


def write_bytes(path: str | Path, data: bytes | Iterator[bytes]) -> None:
    """Write a file so that it is there whole or not at all; makes the parent folders.

    data: all of it, or part after part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file of at most 64 MiB, as strictly as `parse_json` (BAD_DATA)."""
    path = Path(path)
    return parse_json(read_text(path), str(path))


def parse_json(text: str, name: str) -> Any:
    """Parse JSON strictly; UserError (BAD_DATA) naming `name` if it is not.

    Refused are keys that stand twice, numbers that are none or too large for a float, half
    characters (lone surrogates), and more than 32 levels of lists and objects in one another.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice")
        return result

    def number(digits: str) -> float:
        if math.isinf(value := float(digits)):
            raise ValueError(f"{digits[:20]} is not a number")
        return value

    def whole(digits: str) -> int:
        number(digits)
        return int(digits)

    def no_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    try:
        value = json.loads(
            text,
            object_pairs_hook=no_duplicates,
            parse_constant=no_constant,
            parse_float=number,
            parse_int=whole,
        )
        if _depth(value) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a character
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON ({error})", BAD_DATA) from error
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        inner = [x.values() if isinstance(x, dict) else x for x in level if type(x) in (dict, list)]
        level = [child for items in inner for child in items]
        depth += bool(inner)
    return depth


def refuse_way_out(name: str, where: str) -> None:
    """Refuse a path from a file that leads out of the folder it is seen from (UserError)."""
    path = PureWindowsPath(name)  # knows both kinds of slashes
    if ".." in path.parts or path.drive or path.root or CONTROL.search(name) or not path.name:
        raise UserError(f"{where}: {name[:80]!r} leaves the data folder", BAD_DATA)


def refuse_path(name: object, where: str) -> str:
    """The name, if it is that of a file in the very folder; else UserError (BAD_DATA)."""
    if not isinstance(name, str) or not name or "/" in name or "\\" in name:
        raise UserError(f"{where}: {str(name)[:80]!r} is not the name of a file", BAD_DATA)
    refuse_way_out(name, where)
    return name


def quoted(path: str | Path) -> str:
    """A path as a shell takes it, for a command that a message names."""
    return shlex.quote(str(path))


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """Read UTF-8 text, with or without a BOM, of at most `limit` bytes (BAD_DATA)."""
    if not path.is_file():
        raise UserError(f"{path}: no such file", BAD_DATA)
    if path.stat().st_size > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise UserError(f"{path}: larger than {size}, refused", BAD_DATA)
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text", BAD_DATA) from error


def sha256(data: bytes | Path | Iterator[bytes]) -> str:
    """SHA-256 of bytes, of parts in turn, or of a file's content, in hex."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in [data] if isinstance(data, bytes) else data:
        digest.update(part)
    return digest.hexdigest()


# ---------------------------------------------------------------- tools


def run(
    main: Callable[[list[str] | None], int], *, again: str = "the same command goes on"
) -> NoReturn:
    """Run a tool's main and leave with its exit code; errors become one line, --debug shows all.

    again: what an interruption says where `main` does not.
    """
    debug = "--debug" in sys.argv

    def terminate(signum: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = main(None)
        sys.stdout.flush()  # here, where a full disk is still an error
    except UserError as error:
        code = _complain(str(error), error.code, debug)
    except KeyboardInterrupt as error:
        said = f"interrupted; {str(error) or again}"
        code = _complain(said, INTERRUPTED, debug)
    except BrokenPipeError:
        code = DONE  # `| head` is no error
    except (MemoryError, OSError) as error:
        hint = "; free some space" if getattr(error, "errno", 0) == errno.ENOSPC else ""
        code = _complain(f"{str(error) or 'out of memory'}{hint}", ENVIRONMENT, debug)
    except Exception as error:
        what = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
        code = _complain(what, INTERNAL, debug)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)
    sys.exit(code)


def stop_after(minutes: float) -> None:
    """Send this process its own SIGTERM when so many minutes are over (0: never, not any more).

    So a limit of time ends work as a cluster's does: a training saves, all goes on when the same
    command is run again, and the exit code is 143. Raises UserError for a negative number.
    """
    if minutes < 0:
        raise UserError(f"minutes {minutes:g} is negative")

    def over(signum: int, frame: object) -> None:
        os.write(2, b"the time is up; the same command goes on\n")  # print could be interrupted
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)


def _complain(message: str, code: int, debug: bool) -> int:
    with suppress(OSError):  # a log on the full disk
        if debug:
            traceback.print_exc()
        print(f"error: {CONTROL.sub('?', message)}", file=sys.stderr)
    return code


def _let_go(stream: TextIO) -> None:
    """Flush it, or drop what cannot be written: else Python would end with a code of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
