"""Pages of tables and augmented folders: what they say, and that nothing from outside runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from people import make_market, planned, render_all, standing
from test_table import THREE

from pidm_core import BAD_DATA, USAGE, UserError, load_image, write_json, write_keypoints
from pidm_core.options import parse
from pidm_reid import coverage, folder, folder_report, page, report
from pidm_reid.config import ReidTable
from pidm_reid.folder_report import write_folder_report
from pidm_reid.synthesize import Generator
from pidm_reid.table import Grid, Strong, markdown, read_table
from tools import report as report_tool

VOID = {"meta", "link", "img", "br"}
HOSTILE = '"><img src=x onerror=alert(1)>&$x_1$'


class Checked(HTMLParser):
    """Reads a page; fails where a tag is not closed, or something would be loaded."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        text = path.read_text()
        assert "://" not in text
        self.feed(text)
        self.close()
        assert not self.open
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not [name for name in values if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (values.get(name) or "#").startswith(("data:", "#")), values
        if tag == "img":
            assert (values["src"] or "").startswith("data:image/")
            assert values["alt"]
            self.pictures.append(values["alt"] or "")
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "use", "rect")
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data


# ---------------------------------------------------------------- tables


def write_cells(folder: Path, **more: object) -> Path:
    for k, cell in enumerate(THREE):
        write_json(folder / f"cell{k}/result.json", {**cell, **more})
    return folder


def test_a_table_report_shows_figures_plot_and_settings(tmp_path: Path) -> None:
    configuration = {"student": {"height": 64}}
    write_cells(tmp_path, configuration=configuration, versions={"torch": "2.10"})
    path = report.write_table_report(tmp_path, published=True)
    assert path == tmp_path / "report.html"
    seen = Checked(path)
    assert "63.0 ± 3.6" in seen.words
    assert "+4.0 [-2.6, +10.6]" in seen.words  # 4 ± 4.302653 * sqrt(7 / 3)
    assert "GFLA, published" in seen.words
    assert '"height": 64' in seen.words
    assert '"torch": "2.10"' in seen.words
    assert "--rows Standard-same-steps,PIDM --ratios 0.4 --seeds 0,1,2" in seen.words
    assert {"svg", "use", "table", "details"} <= seen.tags
    first = path.read_bytes()
    assert report.write_table_report(tmp_path, published=True).read_bytes() == first


def test_rows_of_folders_of_images_are_named_in_the_command(tmp_path: Path) -> None:
    write_json(tmp_path / "a/result.json", THREE[0])
    foreign = {**THREE[0], "row": "PTN", "configuration": {"images": "12ab"}}
    write_json(tmp_path / "b/result.json", foreign)
    words = Checked(report.write_table_report(tmp_path)).words
    assert "--rows PIDM --ratios 0.4 --seeds 0 --row PTN=DIR" in words
    assert f"reid --name {tmp_path.name} --rows" in words
    write_json(tmp_path / "config.yaml", {})
    words = Checked(report.write_table_report(tmp_path)).words
    assert f"reid --config {tmp_path}/config.yaml --rows PIDM" in words


def test_variants_are_named_in_the_command(tmp_path: Path) -> None:
    write_json(tmp_path / "a/result.json", THREE[0])
    variant = {**THREE[0], "row": "PIDM-strict-last", "change": "policy.real_last=0.2"}
    write_json(tmp_path / "b/result.json", variant)
    words = Checked(report.write_table_report(tmp_path)).words
    assert "--rows PIDM --ratios" in words
    assert "--variants PIDM-strict-last=policy.real_last=0.2" in words


def test_a_variant_whose_value_is_a_list_can_be_run_by_the_command(tmp_path: Path) -> None:
    changes = {"late": "sample.interval=0.3,1", "one": "per_image=1"}
    for row, change in changes.items():
        write_json(tmp_path / row / "result.json", {**THREE[0], "row": row, "change": change})
    words = Checked(report.write_table_report(tmp_path)).words.split()
    flags = ["--variants", words[words.index("--variants") + 1]]
    table = parse(ReidTable, flags, prog="x", description="", example="x")
    assert table.variants == changes


def test_a_published_table_is_a_copy_with_a_plot_of_several_ratios(tmp_path: Path) -> None:
    table = write_cells(tmp_path / "reid_try")
    out = report.publish(table, tmp_path / "docs")
    assert out == tmp_path / "docs/reid_try"
    cells = {str(path.relative_to(table)) for path in table.glob("*/result.json")}
    copied = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert copied == cells | {"table.json", "table.md", "table.csv"}
    assert (out / "table.md").read_bytes() == (table / "table.md").read_bytes()
    write_json(table / "more/result.json", {**THREE[0], "ratio": 0.2})
    report.publish(table, tmp_path / "docs")
    assert load_image(out / "plot.png").std() > 10
    assert markdown(read_table(out)) == (out / "table.md").read_text()
    shutil.rmtree(table / "more")
    with pytest.raises(UserError, match="has 1 cells, such as more, that are not in"):
        report.publish(table, tmp_path / "docs")
    assert (out / "more/result.json").is_file()


def test_what_a_result_says_is_only_text(tmp_path: Path) -> None:
    write_cells(
        tmp_path,
        label=HOSTILE,
        generator_saw=HOSTILE,
        by_camera={HOSTILE: [1, 0.5]},
        configuration={HOSTILE: HOSTILE},
    )
    seen = Checked(report.write_table_report(tmp_path))
    assert not seen.pictures
    assert seen.words.count(HOSTILE) >= 5


def test_rows_of_one_ratio_stand_under_one_title() -> None:
    rows = (("20%", "a", "1"), ("20%", "b", Strong("2")), ("40%", "a", "3"))
    shown = page.table(Grid("t", "", ("real data", "row", "mAP"), rows))
    assert re.findall(r"<th [^>]*>(.*?)</th>", shown) == [
        "row", "mAP", "<span>real data: 20%</span>", "<span>real data: 40%</span>",
    ]  # fmt: skip
    assert re.findall(r"<tr>(<td>.*?)</tr>", shown) == [
        "<td>a</td><td>1</td>",
        "<td>b</td><td><strong>2</strong></td>",
        "<td>a</td><td>3</td>",
    ]
    alone = page.table(Grid("t", "", ("camera", "real"), (("c1", "1"), ("c2", "2"))))
    assert re.findall(r"<tr>(<td>.*?)</tr>", alone) == [
        "<td>c1</td><td>1</td>",
        "<td>c2</td><td>2</td>",
    ]


# ---------------------------------------------------------------- folders


def noise(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
    """The largest files there are; every image of the same seed is the same."""
    return np.stack(
        [np.random.default_rng(seed).integers(0, 256, x.shape, np.uint8)
         for seed, x in zip(seeds, sources, strict=True)]
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """216 generated images of 18 real ones; every fourth was dropped, the next two are equal."""
    root = tmp_path_factory.mktemp("report")
    work = planned(make_market(root / "people"), per_image=12)
    out = root / "made"
    render_all(work, out, Generator(noise, "noise 1", {}, size=(128, 64), saw="D_tr"))
    names = [recipe.file_name for recipe in work.recipes]
    train = out / "market1501/bounding_box_train"
    (train / names[1]).write_bytes((train / names[2]).read_bytes())
    (train / names[4]).write_bytes((train / work.real[0].name).read_bytes())
    with (out / "selection.jsonl").open("w") as file:
        for k, name in enumerate(names):
            dropped = k % 4 == 3
            reason = ("near copy" if k < 100 else "another person") if dropped else ""
            entry = {"file_name": name, "kept": not dropped, "reason": reason, "own": 0.6,
                     "other": 0.25, "source": 0.75, "nearest": work.real[1].name}  # fmt: skip
            file.write(json.dumps(entry) + "\n")
    write_json(out / "selection_real.json", {"a": 0.5, "b": 0.6, "c": 0.9})
    asked = work.poses.keypoints[work.recipes[0].pose]
    found = (asked + 0.5) * 2 - 0.5 + np.array([3, 4])  # the images are twice as large
    found[5] = np.nan  # a joint that was not found counts nothing
    nobody = np.full((18, 2), np.nan)
    write_folder_report(out, found={names[0]: found, names[1]: nobody, "other": found})
    return out, names


def test_a_folder_report_counts_in_words(made: tuple[Path, list[str]]) -> None:
    out, names = made
    words = Checked(out / "report.html").words
    assert "18 real images of 6 people (50% of 36), 162 generated images beside them" in words
    assert (
        "Of 216 candidates 162 were kept and 54 dropped: 29 another person, 25 near copy" in words
    )
    assert "162 images kept, 24 of them evenly chosen" in words
    assert "54 images dropped, 12 of them evenly chosen" in words
    assert "1 generated image equal to another generated one" in words
    assert f"{names[1]} = {names[2]}" in words
    assert "1 generated image equal to a real one" in words
    assert "training image: 0.250; real to the nearest of the same person: 0.400" in words
    assert "person 2, camera 2; own person 0.60; another person 0.25; source 0.75" in words
    assert words.count("joints 5.0 px off") == 1
    assert "those found, 1 image: 5.0 px at the median, 5.0 px or less in nine of ten" in words
    assert "dropped: near copy" in words


def test_a_folder_report_is_small_and_shows_four_pictures_of_each(
    made: tuple[Path, list[str]],
) -> None:
    out, names = made
    assert (out / "report.html").stat().st_size < 2 << 20
    pictures = Checked(out / "report.html").pictures
    assert len(pictures) == 4 * (folder_report.SHOWN_KEPT + folder_report.SHOWN_DROPPED)
    recipe = json.loads((out / "plan.jsonl").read_text().splitlines()[0])
    nearest = json.loads((out / "selection.jsonl").read_text().splitlines()[0])["nearest"]
    assert pictures[:4] == [recipe["source"], f"joints of {recipe['pose']}", names[0], nearest]


def test_dropped_images_are_shown_from_where_they_were_chosen(market: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "made", tmp_path / "selected"
    work = planned(market)
    render_all(work, first)
    names = sorted(recipe.file_name for recipe in work.recipes)
    folder.start_folder(second, folder.read_augmented(first).split)
    folder.lay_out(second, work.real, copy=False)
    train = second / "market1501/bounding_box_train"
    folder.place(first / f"market1501/bounding_box_train/{names[0]}", train / names[0], copy=False)
    ledger = folder.read_ledger(first / folder.MANIFEST)
    folder.append_ledger(second / folder.MANIFEST, [ledger[names[0]]])
    lines = [{"file_name": name, "kept": name == names[0]} for name in names]
    (second / folder.SELECTION).write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = Checked(write_folder_report(second))
    assert "1 image kept" in seen.words
    assert "17 images dropped, 12 of them" in seen.words
    assert "not in this folder" not in seen.words
    assert names[-1] in seen.pictures
    (train / names[0]).unlink()  # the first folder is gone: what it held is named
    (train / names[0]).write_bytes(
        (first / f"market1501/bounding_box_train/{names[0]}").read_bytes()
    )
    assert "not in this folder" in Checked(write_folder_report(second)).words


def test_orientations_and_cameras_count_every_image(made: tuple[Path, list[str]]) -> None:
    text = (made[0] / "report.html").read_text()
    rows = re.findall(r"<tr><td>(c\d|front|back|left|right|unknown)</td>(.*?)</tr>", text)
    numbers = {name: [int(x) for x in re.findall(r"<td>(\d+)", cells)] for name, cells in rows}
    for group in (("c1", "c2", "c3"), (*coverage.VIEWS, "unknown")):
        assert np.sum([numbers[name] for name in group], axis=0).tolist() == [18, 162, 180]
    assert re.search(r"names this camera for \d+% of the generated images, and for \d+%", text)


def test_without_selection_and_joints_a_sentence_says_so(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path / "made", copy=True)  # no link leads to the joints
    seen = Checked(write_folder_report(tmp_path / "made"))
    assert "Nothing was selected (no selection.jsonl)" in seen.words
    assert "Not shown: poses (no keypoint file" in seen.words
    assert "Similarities are not known" in seen.words
    assert "Whether they look" not in seen.words
    assert len(seen.pictures) == 2 * len(work.recipes)
    given = market / "market1501/market-annotation-train.csv"
    seen = Checked(write_folder_report(tmp_path / "made", keypoints=given))
    assert len(seen.pictures) == 3 * len(work.recipes)


def test_joints_are_measured_for_poses_of_a_file_too(market: Path, tmp_path: Path) -> None:
    poses = tmp_path / "poses.csv"
    write_keypoints(poses, {"elsewhere": standing("front")})
    work = planned(market, poses=poses)
    render_all(work, tmp_path / "made")
    found = {recipe.file_name: standing("front") + np.array([0, 2]) for recipe in work.recipes}
    seen = Checked(write_folder_report(tmp_path / "made", keypoints=poses, found=found))
    assert "18 images: 2.0 px at the median" in seen.words
    unknown = {"other": standing("front")}
    seen = Checked(write_folder_report(tmp_path / "made", keypoints=poses, found=unknown))
    assert "None of the joints found can be compared" in seen.words


def test_hostile_names_are_text_and_lead_nowhere(tmp_path: Path) -> None:
    market = make_market(tmp_path / "people", train=2)
    train = market / "market1501/bounding_box_train"
    for path in train.iterdir():
        path.rename(train / path.name.replace(".jpg", f"{HOSTILE}.jpg"))
    csv = market / "market1501/market-annotation-train.csv"
    csv.write_text(csv.read_text().replace(".jpg", f"{HOSTILE}.jpg"))
    work = planned(market)
    render_all(work, tmp_path / "made")
    outside = next((market / "market1501/query").iterdir()).name
    rest = [{"file_name": recipe.file_name, "kept": True} for recipe in work.recipes[1:]]
    line = {
        "file_name": work.recipes[0].file_name,
        "kept": False,
        "own": "x",
        "reason": HOSTILE,
        "nearest": f"../query/{outside}",
    }
    lines = "".join(json.dumps(one) + "\n" for one in (line, *rest))
    (tmp_path / "made/selection.jsonl").write_text(lines)
    seen = Checked(write_folder_report(tmp_path / "made"))
    assert f"dropped: {HOSTILE}" in seen.words
    assert "not in this folder" in seen.words


@pytest.mark.parametrize("line", ["{", "[]", '{"kept": true}'])
def test_a_broken_selection_is_refused_with_its_line(
    made: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (made[0] / "broken.jsonl").write_text(line)
    monkeypatch.setattr(folder, "SELECTION", "broken.jsonl")
    with pytest.raises(UserError, match=r"broken\.jsonl:1: ") as error:
        write_folder_report(made[0])
    assert error.value.code == BAD_DATA


def test_pictures_are_at_most_128_px_high() -> None:
    import base64
    import io

    from PIL import Image

    shown = page.picture(np.zeros((256, 176, 3), np.uint8), alt="x")
    code = re.search(r"base64,([^\"]*)", shown)
    assert code
    assert Image.open(io.BytesIO(base64.b64decode(code[1]))).size == (88, 128)


# ---------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_the_pages_fit_and_load_nothing(
    browser: Any, made: tuple[Path, list[str]], tmp_path: Path, width: int, scheme: str
) -> None:
    write_cells(tmp_path, configuration={"student": {"height": 64}})
    screen = {"width": width, "height": 800}
    context = browser.new_context(viewport=screen, color_scheme=scheme)
    sheet, asked, broken = context.new_page(), list[str](), list[str]()
    sheet.on("request", lambda request: asked.append(request.url))
    sheet.on("console", lambda message: broken.append(message.text))
    for path in (report.write_table_report(tmp_path), made[0] / "report.html"):
        sheet.goto(path.as_uri())
        assert sheet.locator("html").evaluate("page => page.scrollWidth") == width
        paper = sheet.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        assert (int(re.findall(r"\d+", paper)[0]) < 128) == (scheme == "dark")
        for details in sheet.locator("details").all():
            assert not details.locator("pre").is_visible()
            details.locator("summary").click()
            assert details.locator("pre").is_visible()
        cell = sheet.locator("td").first
        table = sheet.locator(".wide").first
        table.evaluate("table => { table.scrollLeft = 200; }")  # the name of a row stays in sight
        assert cell.bounding_box()["x"] == pytest.approx(table.bounding_box()["x"], abs=1)
    drawn = "page => [...page.querySelectorAll('img')].every(image => image.naturalHeight)"
    assert sheet.locator("html").evaluate(drawn)
    context.close()
    assert not broken
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


# ---------------------------------------------------------------- the tool


@pytest.fixture
def tool() -> Callable[[list[str]], int]:
    return report_tool.main


def test_the_tool_sees_which_kind_of_folder_it_is(
    tool: Callable[[list[str]], int],
    market: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, made = write_cells(tmp_path / "table"), tmp_path / "made"
    render_all(planned(market, per_image=1), made)
    assert tool([str(table), str(made), "--published"]) == 0
    assert capsys.readouterr().out == f"-> {table}/report.html\n-> {made}/report.html\n"
    assert "<title>Table table</title>" in (table / "report.html").read_text()
    assert "(published)" in (table / "report.html").read_text()
    assert "<title>Folder made</title>" in (made / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], USAGE, "name a folder"),
        (["nowhere"], BAD_DATA, "nowhere: no such folder"),
        (["x", "--found", "no.csv"], BAD_DATA, "no.csv: no such file"),
    ],
)
def test_wrong_arguments(
    tool: Callable[[list[str]], int], arguments: list[str], code: int, message: str
) -> None:
    with pytest.raises(UserError) as error:
        tool(arguments)
    assert message in str(error.value)
    assert error.value.code == code
