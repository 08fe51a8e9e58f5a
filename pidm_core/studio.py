"""The try-it page: a server on this machine that draws, edits and blends people as one watches.

Nothing is stored: every picture comes from the page and goes back to it.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np

from pidm_core.config import Sampling
from pidm_core.datasets import People
from pidm_core.diffusion import WEIGHTS, Step
from pidm_core.files import (
    BAD_DATA,
    ENVIRONMENT,
    UserError,
    decode_image,
    encode_png,
    parse_json,
    resized,
)
from pidm_core.hardware import to_uint8
from pidm_core.keypoints import JOINTS, NOBODY, passes_patn, rescale
from pidm_core.options import from_dict
from pidm_core.pipeline import PIDMPipeline
from pidm_core.pose import COLOURS, LIMBS

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
MAX_UPLOAD_BYTES = 20 << 20
PEOPLE_PER_PAGE = 24
MOST_FRAMES = 16
_PAGE = Path(__file__).parent / "assets" / "studio" / "page.html"
_FAR = 10_000.0  # px from which on a joint is a mistake
_STRONGEST = 20.0  # guidance weight
_SOFTEN = 1 / 32  # of the height: width over which a redrawn region fades in
_CSP = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Say = Callable[[dict[str, Any]], None]
"""Tells the page something, at once."""


# ---------------------------------------------------------------- what a page may wish for


@dataclass(frozen=True)
class Draw(Sampling):
    """A person in a pose; pictures are data URIs."""

    source: str = ""
    joints: tuple[tuple[float, float] | None, ...] = ()
    """18 places in px of the model's frame, None = missing."""
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.joints) != len(JOINTS):
            raise UserError(f"joints: {len(self.joints)} instead of {len(JOINTS)}")
        if not all(abs(value) < _FAR for joint in self.joints if joint for value in joint):
            raise UserError("joints: one is far outside the picture")
        for name, weight in (("w_p", self.w_p), ("w_s", self.w_s)):
            if weight is not None and not abs(weight) <= _STRONGEST:
                raise UserError(f"{name}: {weight} is not between -{_STRONGEST} and {_STRONGEST}")

    def pose(self) -> np.ndarray:
        """The joints as (18, 2) px, NaN = missing."""
        return np.array([joint or NOBODY[0] for joint in self.joints], dtype=np.float32)


@dataclass(frozen=True)
class Edit(Draw):
    """A picture whose white part of the mask is redrawn in the appearance of the source."""

    reference: str = ""
    mask: str = ""


@dataclass(frozen=True)
class Blend(Draw):
    """From the appearance of the source to that of another person, in one pose."""

    to: str = ""
    frames: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames > MOST_FRAMES:
            raise UserError(f"frames: {self.frames} are more than {MOST_FRAMES}")


class Studio:
    """What the page can do; knows nothing of HTTP."""

    def __init__(self, pipe: PIDMPipeline, people: People, *, title: str) -> None:
        self.pipe, self.people, self.title = pipe, people, title
        joints = [people.keypoints.get(record.name, NOBODY) for record in people.records]
        whole = np.flatnonzero(passes_patn(np.stack(joints)))
        if not len(whole):
            raise UserError(
                f"{title}: no image shows both shoulders and both hips, so that nobody can be "
                "offered; name another folder with --data",
                BAD_DATA,
            )
        self.shown = np.random.default_rng(0).permutation(whole)
        self.one_at_a_time = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What the page needs to know before anything is drawn."""
        settings = self.pipe.settings
        return {
            "title": self.title,
            "hardware": str(self.pipe.placement),
            "size": self.pipe.size,
            "steps": settings.steps,
            "w_p": settings.w_p,
            "w_s": settings.w_s,
            "weights": WEIGHTS[settings.guidance],
            "levels": self.pipe.diffusion.config.T,
            "joints": JOINTS,
            "limbs": LIMBS,
            "colours": COLOURS,
            "pages": -(-len(self.shown) // PEOPLE_PER_PAGE),
        }

    def page(self, number: int) -> list[dict[str, Any]]:
        """Some people of the data set, with their joints.

        Left out: who cannot be read, and who lacks a shoulder or hip within the picture.
        """
        start, found = number * PEOPLE_PER_PAGE, []
        for index in self.shown[start : start + PEOPLE_PER_PAGE]:
            record = self.people.records[index]
            try:
                image, joints = self.people.open(index)
            except (UserError, OSError) as error:
                log.warning("%s", error)
                continue
            if not passes_patn(joints):
                continue
            joints = rescale(joints, image.shape[:2], self.pipe.size)
            gone = np.isnan(joints).any(-1)
            places = np.round(joints.astype(float), 2).tolist()
            found.append(
                {
                    "name": record.name,
                    "image": _uri(resized(image, self.pipe.size)),
                    "joints": [None if g else p for p, g in zip(places, gone, strict=True)],
                }
            )
        return found

    def fit(self, data: bytes) -> dict[str, Any]:
        """A user's picture, its middle cut to the model's proportions, at the model's size."""
        image = decode_image(data, "the picture")
        (height, width), (H, W) = image.shape[:2], self.pipe.size
        high, wide = min(height, round(width * H / W)), min(width, round(height * W / H))
        top, left = (height - high) // 2, (width - wide) // 2
        cut = image[top : top + high, left : left + wide]
        return {
            "name": "your picture",
            "image": _uri(resized(cut, self.pipe.size)),
            "joints": None,
        }

    def draw(self, wish: Draw, say: Say) -> None:
        """Draw a person in a pose, and say every step."""
        source = _picture(wish.source, "source")
        with self.one_at_a_time:
            pipe = self._pipe(wish, say)
            _say_all(say, pipe(source, wish.pose(), seeds=[wish.seed]).images)

    def edit(self, wish: Edit, say: Say) -> None:
        """Redraw a part of a picture, and say every step."""
        style, reference = _picture(wish.source, "source"), _picture(wish.reference, "reference")
        mask = _picture(wish.mask, "mask").mean(2) > 127
        soften = _SOFTEN * self.pipe.size[0]
        with self.one_at_a_time:
            drawn = self._pipe(wish, say).edit_appearance(
                style, reference, mask, wish.pose(), soften=soften, seeds=[wish.seed]
            )
            _say_all(say, drawn.images)

    def blend(self, wish: Blend, say: Say) -> None:
        """Go from one appearance to another, and say every step of all frames together."""
        a, b = _picture(wish.source, "source"), _picture(wish.to, "to")
        with self.one_at_a_time:
            pipe = self._pipe(wish, say, batch_size=max(1, wish.frames))
            drawn = pipe.interpolate_style(
                a, b, wish.pose(), wish.frames, seeds=(wish.seed, wish.seed + 1)
            )
            _say_all(say, drawn.images)

    def _pipe(self, wish: Draw, say: Say, *, batch_size: int = 1) -> PIDMPipeline:
        pipe = self.pipe.with_settings(**{**wish.changes(), "batch_size": batch_size})

        def watch(step: Step) -> None:
            say(
                {
                    "step": step.number + 1,
                    "of": pipe.settings.steps,
                    "images": list(map(_uri, to_uint8(step.y_0))),
                    "noisy": list(map(_uri, to_uint8(step.y))),
                }
            )

        return pipe.watched(watch)


def _say_all(say: Say, images: Iterable[np.ndarray]) -> None:
    say({"done": True, "images": list(map(_uri, images))})


def _uri(image: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(image, generated=True)).decode()}"


def _picture(uri: str, name: str) -> np.ndarray:
    """Decode a data URI of the page: uint8 (H, W, 3)."""
    if not uri:
        raise UserError(f"{name}: a picture is missing", BAD_DATA)
    try:
        data = base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name}: not a picture of this page", BAD_DATA) from error
    return decode_image(data, name)


# ---------------------------------------------------------------- HTTP


def serve(studio: Studio, port: int) -> Server:
    """A server of the page on this machine alone; `serve_forever` starts it. Port 0 = any free.

    Raises UserError (ENVIRONMENT) if the port is taken.
    """
    try:
        return Server(studio, port)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"port {port}: {why}; give another --port", ENVIRONMENT) from error


class Server(ThreadingHTTPServer):
    """The studio's server; knows the names by which its own page calls it."""

    daemon_threads = True

    def __init__(self, studio: Studio, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.studio = studio
        port = self.server_port
        self.names = [f"{name}:{port}" for name in (HOST, "localhost")]
        if port == 80:  # which browsers leave out
            self.names += [HOST, "localhost"]


class _Handler(BaseHTTPRequestHandler):
    """One request. Whoever calls us by another name is another site in this browser: refused."""

    server: Server
    timeout = 60  # s that a browser may stand still
    server_version, sys_version = "pidm", ""
    wishes: ClassVar[dict[str, type[Draw]]] = {"/draw": Draw, "/edit": Edit, "/blend": Blend}

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Callable[[Studio], None]) -> None:
        names = self.server.names
        host, origin = (self.headers.get(name) for name in ("Host", "Origin"))
        try:
            if (host or "").lower() not in names:
                self._json(421, {"error": "this page answers on 127.0.0.1 alone"})
            elif origin is not None and origin.lower().removeprefix("http://") not in names:
                self._json(403, {"error": "another site asked"})
            else:
                method(self.server.studio)
        except UserError as error:
            self._json(400, {"error": str(error)})
        except OSError:  # the page was closed, or asks for something newer
            self.close_connection = True

    def _get(self, studio: Studio) -> None:
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            raise UserError(f"{self.path}: no address", BAD_DATA) from error
        if url.path == "/":
            self._send(200, "text/html; charset=utf-8", _PAGE.read_bytes())
        elif url.path == "/about":
            self._json(200, studio.about())
        elif url.path == "/people":
            number = parse_qs(url.query).get("page", ["0"])[0]
            wanted = int(number) if number.isdecimal() and len(number) < 10 else 0
            self._json(200, studio.page(wanted))
        else:
            self._json(404, {"error": "no such page"})

    def _post(self, studio: Studio) -> None:
        body = self._body()
        if body is None:
            self._json(413, {"error": f"more than {MAX_UPLOAD_BYTES >> 20} MiB, or no length"})
        elif self.path == "/fit":
            self._json(200, studio.fit(body))
        elif kind := self.wishes.get(self.path):
            value = parse_json(body.decode(errors="replace"), "the request")
            if not isinstance(value, dict):
                raise UserError("the request: expected names with values", BAD_DATA)
            self._stream(getattr(studio, self.path[1:]), from_dict(kind, value))
        else:
            self._json(404, {"error": "no such page"})

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12 or int(length) > MAX_UPLOAD_BYTES:
            return None
        return self.rfile.read(int(length))

    def _stream(self, work: Callable[[Any, Say], None], wish: Draw) -> None:
        """Do the work; what it says goes out as lines of JSON, an error as the last of them."""

        def say(value: dict[str, Any]) -> None:
            self.wfile.write(json.dumps(value).encode() + b"\n")
            self.wfile.flush()

        self._head(200, "application/x-ndjson")
        try:
            work(wish, say)
        except UserError as error:
            say({"error": str(error)})
        except OSError:
            raise
        except Exception as error:
            log.exception("drawing failed")
            say({"error": f"internal error: {type(error).__name__} (see the terminal)"})

    def _json(self, status: int, value: object) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self._head(status, kind)
        self.wfile.write(data)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Security-Policy", _CSP),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
