"""The try-it page: what it draws is what the pipeline draws, strangers are refused, and it works
by mouse and touch in a browser."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import save_tiny

from pidm_core import PIDMPipeline, UserError, decode_image, encode_jpeg, encode_png
from pidm_core.config import Guidance
from pidm_core.datasets import People, read_people
from pidm_core.files import BAD_DATA, ENVIRONMENT
from pidm_core.studio import MAX_UPLOAD_BYTES, PEOPLE_PER_PAGE, Server, Studio, serve

ROOT = Path(__file__).parent.parent
STANDING = [[4.0 + k % 3 * 4, 2.0 + k * 1.5] for k in range(18)]  # px of 32 x 16


def served(studio: Studio) -> Iterator[Server]:
    with serve(studio, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def people(drawn_people: Path) -> People:
    return read_people(drawn_people)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> PIDMPipeline:
    return PIDMPipeline.from_pretrained(save_tiny(tmp_path_factory.mktemp("run") / "model"))


@pytest.fixture(scope="module")
def tiny(pipe: PIDMPipeline, people: People) -> Iterator[Server]:
    """A server with a tiny network of random weights, 32 x 16 px, two steps."""
    yield from served(Studio(pipe, people, title="tiny"))


def ask(
    server: Server, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON (of a stream the list of its lines) and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    lines = [json.loads(line) for line in answer.read().splitlines()]
    stream = answer.headers["Content-Type"] == "application/x-ndjson"
    connection.close()
    return answer.status, lines if stream else lines[0], dict(answer.headers)


def wish(**changes: Any) -> dict[str, Any]:
    return {"source": uri(stripes(0)), "joints": STANDING, "seed": 3, **changes}


def stripes(shift: int) -> np.ndarray:
    rows = (np.arange(32)[:, None, None] * 7 + np.array([0, 90, 180]) + shift) % 256
    return np.broadcast_to(rows, (32, 16, 3)).astype(np.uint8)


def uri(image: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def pixels(text: str) -> np.ndarray:
    return decode_image(base64.b64decode(text.partition(",")[2]), "answer")


# ---------------------------------------------------------------- what is drawn


def test_a_drawing_is_the_pipelines_own_and_its_steps_are_told(
    tiny: Server, pipe: PIDMPipeline
) -> None:
    joints = [None, *STANDING[1:]]
    asked = wish(joints=joints, steps=3, w_p=1.5, w_s=2.5)
    status, lines, _ = ask(tiny, "/draw", json.dumps(asked).encode())
    pose = np.array([[np.nan, np.nan], *STANDING[1:]])
    settings = {"steps": 3, "w_p": 1.5, "w_s": 2.5, "batch_size": 1}
    wanted = pipe(stripes(0), pose, seeds=[3], **settings).images[0]
    assert status == 200
    assert [(line["step"], line["of"]) for line in lines[:-1]] == [(1, 3), (2, 3), (3, 3)]
    assert lines[-1]["done"] is True
    assert np.array_equal(pixels(lines[-1]["images"][0]), wanted)
    assert np.array_equal(pixels(lines[2]["noisy"][0]), wanted)  # no noise is left after the last
    assert not np.array_equal(pixels(lines[0]["images"][0]), wanted)


def test_an_edit_keeps_what_is_not_painted(tiny: Server) -> None:
    mask = np.zeros((32, 16, 3), dtype=np.uint8)
    mask[:16] = 255
    asked = wish(reference=uri(stripes(40)), mask=uri(mask))
    *_, last = ask(tiny, "/edit", json.dumps(asked).encode())[1]
    edited = pixels(last["images"][0])
    assert np.array_equal(edited[16:], stripes(40)[16:])
    assert not np.array_equal(edited[:16], stripes(40)[:16])


def test_a_blend_goes_from_one_to_the_other(tiny: Server, pipe: PIDMPipeline) -> None:
    asked = wish(to=uri(stripes(40)), frames=3)
    *steps, last = ask(tiny, "/blend", json.dumps(asked).encode())[1]
    assert [len(line["images"]) for line in steps] == [3, 3]
    wanted = pipe.with_settings(batch_size=3).interpolate_style(
        stripes(0), stripes(40), np.array(STANDING), 3, seeds=(3, 4)
    )
    drawn = np.stack([pixels(text) for text in last["images"]])
    assert np.array_equal(drawn, wanted.images)


def test_people_are_offered_with_joints_in_px_of_the_model(tiny: Server, people: People) -> None:
    status, about, headers = ask(tiny, "/about")
    assert (status, about["size"], about["steps"]) == (200, [32, 16], 2)
    pages = [ask(tiny, f"/people?page={page}")[1] for page in range(about["pages"] + 1)]
    assert len(pages[0]) == PEOPLE_PER_PAGE
    assert not pages[-1]
    shown = [person for page in pages for person in page]
    whole = {
        name: joints
        for name, joints in people.keypoints.items()
        if not np.isnan(joints[[2, 5, 8, 11]]).any()
    }
    assert sorted(person["name"] for person in shown) == sorted(whole)
    first = shown[0]
    assert pixels(first["image"]).shape == (32, 16, 3)
    neck = (whole[first["name"]][2] + 0.5) / 4 - 0.5  # images are 128 x 64
    assert first["joints"][2] == pytest.approx(neck.tolist(), abs=0.01)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; img-src data:;")


def test_who_lacks_a_shoulder_within_the_picture_is_not_offered(
    pipe: PIDMPipeline, people: People
) -> None:
    name = next(n for n, joints in people.keypoints.items() if not np.isnan(joints[2]).any())
    outside = people.keypoints[name].copy()
    outside[2] = 70, 40  # images are 64 wide
    changed = dataclasses.replace(people, keypoints={**people.keypoints, name: outside})
    before, after = (
        {p["name"] for n in range(50) for p in Studio(pipe, whose, title="tiny").page(n)}
        for whose in (people, changed)
    )
    assert before - after == {name}


@pytest.mark.parametrize(
    ("guidance", "weights"), [("chain", ["w_p", "w_s"]), ("style", ["w_s"]), ("none", [])]
)
def test_weights_that_count_for_nothing_are_not_offered(
    pipe: PIDMPipeline, people: People, guidance: Guidance, weights: list[str]
) -> None:
    studio = Studio(pipe.with_settings(guidance=guidance), people, title="tiny")
    assert list(studio.about()["weights"]) == weights


def test_an_uploaded_picture_is_cut_in_the_middle(tiny: Server) -> None:
    picture = np.zeros((64, 96, 3), dtype=np.uint8)
    picture[:, 32:64, 1] = 255  # the middle third has the model's proportions
    status, fitted, _ = ask(tiny, "/fit", encode_png(picture))
    assert status == 200
    assert pixels(fitted["image"]).shape == (32, 16, 3)
    assert (pixels(fitted["image"])[..., 1] == 255).all()
    assert fitted["joints"] is None


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/draw", b"{", "not valid JSON"),
        ("/draw", b"[]", "expected names with values"),
        ("/draw", b"\xff", "not valid JSON"),
        ("/draw", b"[" * 100_000, "not valid JSON"),
        ("/draw", wish(sauce=1), "unknown key 'sauce'; did you mean 'source'?"),
        ("/draw", wish(joints=[[1, 2]]), "joints: 1 instead of 18"),
        ("/draw", wish(joints=[[1, 2, 3]] * 18), "joints: expected a list"),
        ("/draw", wish(joints=[[1e9, 2]] * 18), "far outside"),
        ("/draw", wish(w_p=1e9), "w_p: 1000000000.0 is not between"),
        ("/draw", wish(steps="many"), "steps: expected int"),
        ("/draw", {}, "joints: 0 instead of 18"),
        ("/blend", wish(frames=1000), "frames: 1000 are more than 16"),
        ("/fit", b"no picture", "the picture: not a whole image"),
        ("/fit", b"", "the picture: the file is empty"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    tiny: Server, path: str, body: bytes | dict[str, Any], words: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer, _ = ask(tiny, path, data)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        ("/draw", {"source": ""}, "source: a picture is missing"),
        ("/draw", {"source": "data:,???"}, "source: not a picture of this page"),
        ("/draw", {"source": uri(stripes(0))[:90]}, "source: not a whole image"),
        ("/draw", {"steps": 5000}, "5000 steps are not between 1 and the 1000"),
        ("/edit", {"reference": uri(stripes(0)), "mask": uri(stripes(0)[:20])}, "the mask is"),
        ("/blend", {"to": uri(stripes(0)), "frames": 1}, "an interpolation needs at least 2"),
    ],
)
def test_what_cannot_be_drawn_ends_the_stream_with_a_sentence(
    tiny: Server, path: str, changes: dict[str, Any], words: str
) -> None:
    status, lines, _ = ask(tiny, path, json.dumps(wish(**changes)).encode())
    assert status == 200
    assert words in lines[-1]["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "LOCALHOST:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 421),  # DNS rebinding
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
    ],
)
def test_only_its_own_page_is_answered(tiny: Server, headers: dict[str, str], status: int) -> None:
    filled = {name: text.format(port=tiny.server_port) for name, text in headers.items()}
    assert ask(tiny, "/about", **filled)[0] == status
    assert ask(tiny, "/fit", encode_png(stripes(0)), **filled)[0] == status


def test_at_port_80_the_page_is_called_without_it(
    tiny: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "server_bind", lambda self: setattr(self, "server_port", 80))
    monkeypatch.setattr(Server, "server_activate", lambda self: None)
    with Server(tiny.studio, 80) as server:
        assert {"127.0.0.1", "localhost", "127.0.0.1:80"} <= set(server.names)


def test_an_address_that_is_none_is_one_sentence(tiny: Server) -> None:
    with socket.create_connection(("127.0.0.1", tiny.server_port), timeout=60) as line:
        host = f"127.0.0.1:{tiny.server_port}"
        line.sendall(f"GET http://[::1 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = line.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.0 400")
    assert "no address" in answer


def test_too_much_is_refused_before_it_is_read(tiny: Server) -> None:
    for length in (str(MAX_UPLOAD_BYTES + 1), "-1", "many", "9" * 30):
        connection = http.client.HTTPConnection("127.0.0.1", tiny.server_port, timeout=10)
        connection.putrequest("POST", "/fit")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()
    assert ask(tiny, "/nothing")[0] == ask(tiny, "/nothing", b"")[0] == 404


def test_a_closed_page_ends_its_drawing(pipe: PIDMPipeline, people: People) -> None:
    from pidm_core.studio import Draw

    studio, told = Studio(pipe, people, title="tiny"), list[int]()

    def say(value: dict[str, Any]) -> None:
        told.append(value["step"])
        raise BrokenPipeError

    asked = Draw(source=uri(stripes(0)), joints=tuple(map(tuple, STANDING)), steps=50)
    with pytest.raises(BrokenPipeError):
        studio.draw(asked, say)
    assert told == [1]
    assert not studio.one_at_a_time.locked()


def test_a_port_that_is_taken_and_a_data_set_without_poses_are_refused(
    tiny: Server, pipe: PIDMPipeline, people: People
) -> None:
    with pytest.raises(UserError, match="in use; give another --port") as taken:
        serve(tiny.studio, tiny.server_port)
    assert taken.value.code == ENVIRONMENT
    with pytest.raises(UserError, match="no image shows both shoulders and both hips") as empty:
        Studio(pipe, People(people.records, {}), title="x")
    assert empty.value.code == BAD_DATA


# ---------------------------------------------------------------- the tool


def test_the_tool_draws_people_serves_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/studio.py"), "--port", "0"]
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # the children of a background job ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as tool:
        assert tool.stdout
        first = tool.stdout.readline()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+) is open; Ctrl-C ends it\n", first)
        assert match
        assert list(tmp_path.glob("pidm-studio-*/market1501"))
        connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=30)
        connection.request("GET", "/about")
        assert json.load(connection.getresponse())["title"] == "toy_market, drawn people"
        connection.close()
        tool.send_signal(signal.SIGINT)
        assert tool.stdout.read() == "\nclosed; nothing was stored\n"
    assert tool.returncode == 0
    assert not list(tmp_path.glob("pidm-studio-*"))


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def toy(people: People) -> Iterator[Server]:
    """A server with the bundled model."""
    pipe = PIDMPipeline.from_pretrained("toy_market")
    pipe(None, None)  # the first is slower
    yield from served(Studio(pipe, people, title="toy_market, drawn people"))


@pytest.fixture
def open_page(toy: Server, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; what it asks for is in page.asked."""
    from playwright.sync_api import expect

    contexts = []

    def visit(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.asked, page.broken = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.broken.append(str(error)))
        page.on("console", lambda message: page.broken.append(message.text))
        page.goto(f"http://127.0.0.1:{toy.server_port}/")
        expect(page.locator("#said")).to_have_text(DONE_DRAWING, timeout=20_000)
        return page

    yield visit
    for context in contexts:
        context.close()


DONE_DRAWING = re.compile(r"^\d+ steps?, [\d.]+ s$")


def drawn(page: Any) -> np.ndarray:
    return pixels(page.locator("#drawn").get_attribute("src"))


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag over the stage, in shares of its width and height."""
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=4)
    page.mouse.up()


def redrawn(page: Any, act: Callable[[], object]) -> np.ndarray:
    """The picture after an action that makes the page draw."""
    from playwright.sync_api import expect

    page.locator("#said").evaluate("said => { said.textContent = ''; }")
    act()
    expect(page.locator("#said")).to_have_text(DONE_DRAWING, timeout=20_000)
    expect(page.locator("#go")).to_have_text("Draw")
    return drawn(page)


def test_one_picks_drags_draws_edits_and_blends(
    open_page: Callable[..., Any], toy: Server, tmp_path: Path
) -> None:
    page = open_page()
    first = drawn(page)
    assert first.shape == (64, 32, 3)
    assert first.std() > 10  # a picture, and not one grey
    assert page.locator("#film img").count() == 3

    other = redrawn(page, page.locator("#gallery button").nth(5).click)
    assert not np.array_equal(other, first)
    assert np.array_equal(redrawn(page, page.locator("#gallery button").nth(0).click), first)

    joint = page.locator("#skeleton circle").last
    before = [float(joint.get_attribute(name) or 0) for name in ("cx", "cy")]
    start = ((before[0] + 0.5) / 32, (before[1] + 0.5) / 64)
    moved = redrawn(page, lambda: drag(page, start, (0.9, 0.9)))
    after = [float(joint.get_attribute(name) or 0) for name in ("cx", "cy")]
    assert after == pytest.approx([0.9 * 32 - 0.5, 0.9 * 64 - 0.5], abs=0.3)
    assert not np.array_equal(moved, first)
    assert np.array_equal(redrawn(page, page.get_by_role("button", name="Reset").click), first)

    page.locator("#seed").fill("7")
    assert not np.array_equal(redrawn(page, lambda: page.keyboard.press("Enter")), first)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    download.value.save_as(tmp_path / "saved.png")
    assert download.value.suggested_filename == "pidm-draw-seed7.png"
    assert np.array_equal(decode_image((tmp_path / "saved.png").read_bytes(), "saved"), drawn(page))

    page.get_by_label("draw at every change").uncheck()
    page.locator("#seed").fill("9")  # which is not what was drawn
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename == "pidm-draw-seed7.png"
    page.get_by_label("draw at every change").check()

    page.get_by_role("button", name="Edit", exact=True).click()
    kept = pixels(page.locator("#under").get_attribute("src"))
    edited = redrawn(page, lambda: drag(page, (0.3, 0.4), (0.7, 0.4)))
    assert np.array_equal(edited[40:], kept[40:])
    assert not np.array_equal(edited[20:30], kept[20:30])

    page.get_by_role("button", name="Blend").click()
    page.locator("#film img").nth(7).wait_for()
    assert page.locator("#film img").count() == 8
    page.locator("#film img").nth(7).click()
    last = drawn(page)
    page.locator("#film img").nth(0).click()
    assert not np.array_equal(drawn(page), last)

    assert not page.broken
    home = f"http://127.0.0.1:{toy.server_port}/"
    assert {url.split(",")[0] for url in page.asked if not url.startswith(home)} <= {
        "data:image/png;base64", "data:",
    }  # fmt: skip


def test_a_picture_of_ones_own_and_a_broken_one(open_page: Callable[..., Any]) -> None:
    from playwright.sync_api import expect

    page = open_page()
    picture = encode_jpeg(np.full((200, 100, 3), (200, 30, 60), np.uint8))
    own = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": picture}
    redrawn(page, lambda: page.locator("#file").set_input_files(own))
    shown = pixels(page.locator(".slot img").first.get_attribute("src"))
    assert np.abs(shown.astype(int) - (200, 30, 60)).max() <= 3
    broken = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"}
    page.locator("#file").set_input_files(broken)
    expect(page.locator("#said")).to_contain_text("the picture: not a whole image")


def test_a_drawing_that_breaks_off_is_not_taken_for_one(open_page: Callable[..., Any]) -> None:
    from playwright.sync_api import expect

    page = open_page()
    step = json.dumps({"step": 1, "of": 3, "images": [uri(stripes(0))], "noisy": [uri(stripes(0))]})
    page.route("**/draw", lambda route: route.fulfill(body=f"{step}\n"))
    page.locator("#gallery button").nth(3).click()
    expect(page.locator("#said")).to_contain_text("stopped in the middle of a drawing")
    expect(page.get_by_label("draw at every change")).to_be_checked()
    expect(page.get_by_role("button", name="Save")).to_be_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(
    open_page: Callable[..., Any], scheme: str
) -> None:
    phone = {"width": 360, "height": 740}
    page = open_page(viewport=phone, color_scheme=scheme, has_touch=True)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 128) == (scheme == "dark")
    for mode in ("Edit", "Blend", "Pose"):
        page.get_by_role("button", name=mode, exact=True).tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    touched = redrawn(page, page.locator("#poses button").nth(3).tap)
    assert touched.shape == (64, 32, 3)
