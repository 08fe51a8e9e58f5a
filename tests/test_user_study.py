"""The user study: what its page shows and hides, and what its figures are."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from pidm_core import (
    BAD_DATA,
    DONE,
    USAGE,
    UserError,
    decode_image,
    encode_jpeg,
    encode_png,
    load_image,
    read_json,
    toy_market,
    write_bytes,
    write_json,
)
from pidm_core.user_study import (
    IMAGES,
    SETS,
    Answers,
    Key,
    build_study,
    read_answers,
    read_key,
    score_study,
    share,
    write_study,
)
from tools import user_study as user_study_tool

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
METHODS = ("PIDM", "GFLA", "DPTN")


def tool(*arguments: object) -> int:
    return user_study_tool.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """market1501 of drawn people, and three methods' images of the same 40 pairs beside it."""
    root = tmp_path_factory.mktemp("study")
    train = toy_market.make(root, preset="tiny") / "bounding_box_train"
    names = sorted(path.name for path in train.iterdir())
    pairs = [(a, b) for a, b in pairwise(names) if a[:4] == b[:4]][:40]
    for source, target in pairs:
        truth, name = load_image(train / target), f"{Path(source).stem}_2_{Path(target).stem}_vis"
        write_bytes(root / f"PIDM/{name}.png", encode_png(truth // 2 + 60))
        write_bytes(root / f"GFLA/{name}.jpg", encode_jpeg(load_image(train / source)))
        small = np.asarray(Image.fromarray(truth).resize((32, 64)))
        write_bytes(root / f"DPTN/{name}.png", encode_png(small))
    return root


def arguments(people: Path, **changes: Any) -> dict[str, Any]:
    """What makes a study of all three methods with poses, as arguments of build_study."""
    train = people / "market1501/bounding_box_train"
    return {
        "real": train,
        "methods": {name: people / name for name in METHODS},
        "sources": train,
        "truth": train,
        "keypoints": people / "market1501/exact-annotation-train.csv",
        **changes,
    }


@pytest.fixture(scope="module")
def study(people: Path) -> tuple[str, Key]:
    return build_study(**arguments(people))


@pytest.fixture(scope="module")
def made(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the study.html and study_key.json of the same study, made by the tool."""
    folder, train = tmp_path_factory.mktemp("made"), people / "market1501/bounding_box_train"
    others = [text for name in METHODS[1:] for text in ("--set", f"{name}={people / name}")]
    joints = people / "market1501/exact-annotation-train.csv"
    given = {"real": train, "generated": people / "PIDM", "sources": train, "truth": train}
    given |= {"keypoints": joints, "out": folder / "study.html"}
    flags = [text for name, value in given.items() for text in (f"--{name}", value)]
    assert tool("build", *others, *flags, "--dry-run") == DONE
    assert not any(folder.iterdir())
    assert tool("build", *others, *flags) == DONE
    return folder


def contents(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def pixels(data_uri: str) -> np.ndarray:
    kind, _, data = data_uri.partition(",")
    assert kind == "data:image/png;base64"
    return decode_image(base64.b64decode(data), "an image of the page")


def answered(
    key: Key, *, r2g: int, g2r: int, best: dict[str, int], rater: str = "a"
) -> dict[str, Any]:
    """Answers that misjudge so many images, and choose each method in so many sets."""
    left = {"real": r2g, "generated": g2r}
    images, sets = {}, {}
    for name, kind in key.images.items():
        wrong = left[kind] > 0
        left[kind] -= 1
        images[name] = kind if not wrong else {"real": "generated", "generated": "real"}[kind]
    wanted = [method for method, count in best.items() for _ in range(count)]
    for (name, choices), method in zip(key.sets.items(), wanted, strict=True):
        sets[name] = next(choice for choice, other in choices.items() if other == method)
    return {"study": key.study, "rater": rater, "images": images, "sets": sets}


BEST = {"PIDM": 17, "GFLA": 13, "DPTN": 0}


# ---------------------------------------------------------------- the page


def test_the_key_tells_which_file_each_image_of_the_page_is(
    study: tuple[str, Key], people: Path
) -> None:
    shown, key = contents(study[0]), study[1]
    train = people / "market1501/bounding_box_train"
    kinds = list(key.images.values())
    assert kinds.count("real") == kinds.count("generated") == IMAGES
    assert [entry["id"] for entry in shown["images"]] == list(key.images)
    for entry in shown["images"]:
        folder = train if key.images[entry["id"]] == "real" else people / "PIDM"
        truth = load_image(folder / key.files[entry["id"]])
        assert np.array_equal(pixels(entry["image"]), truth)
    assert len({*key.files.values()}) >= 2 * IMAGES  # each of the 60 is another one
    assert len(shown["sets"]) == len(key.sets) == SETS
    for entry in shown["sets"]:
        pair = key.files[entry["id"]]
        source, target = pair.removesuffix("_vis").split("_2_")
        assert np.array_equal(pixels(entry["source"]), load_image(train / f"{source}.jpg"))
        assert np.array_equal(pixels(entry["truth"]), load_image(train / f"{target}.jpg"))
        methods = key.sets[entry["id"]]
        assert set(methods.values()) == set(METHODS)
        for choice in entry["choices"]:
            method, image = methods[choice["id"]], pixels(choice["image"])
            path = people / method / f"{pair}.{'jpg' if method == 'GFLA' else 'png'}"
            assert image.shape == (128, 64, 3)  # DPTN's are smaller
            assert method == "DPTN" or np.array_equal(image, load_image(path))


def test_target_poses_are_drawn_at_the_joints(study: tuple[str, Key], people: Path) -> None:
    from pidm_core import read_keypoints

    joints = read_keypoints(people / "market1501/exact-annotation-train.csv")
    seen = 0
    for entry in contents(study[0])["sets"]:
        target = study[1].files[entry["id"]].split("_2_")[1].removesuffix("_vis") + ".jpg"
        inside = [(x, y) for x, y in joints[target] if 0 <= x < 64 and 0 <= y < 128]
        drawing = pixels(entry["pose"])
        assert all(drawing[round(float(y)), round(float(x))].any() for x, y in inside)
        seen += len(inside)
    assert seen > 200


def test_the_page_names_nothing_and_loads_nothing(study: tuple[str, Key]) -> None:
    page, key = study
    text = re.sub(r"base64,[^\"]*", "", page)
    for word in (*METHODS, "_vis", "_c1s", "_c2s", ".jpg", ".png", "http:", "https:", "//"):
        assert word not in re.sub(r"^//.*", "", text, flags=re.MULTILINE), word
    assert not [name for name in key.files.values() if Path(name).stem in text]
    assert set(re.findall(r"\b(?:src|href)=\"?([a-z]+:)", text)) <= {"data:"}
    assert {len(entry) for entry in contents(page)["images"]} == {2}  # id and image


def test_kinds_and_methods_are_shuffled(study: tuple[str, Key]) -> None:
    key = study[1]
    kinds = [kind == "real" for kind in key.images.values()]
    changes = sum(a != b for a, b in pairwise(kinds))
    assert 15 <= changes <= 45  # 30 of 59 are expected, and 1 unshuffled
    first = [next(iter(choices.values())) for choices in key.sets.values()]
    assert all(first.count(method) >= 3 for method in METHODS)  # 10 of 30 are expected


def test_the_seed_decides_the_page(study: tuple[str, Key], made: Path, people: Path) -> None:
    assert (made / "study.html").read_text() == study[0]
    assert read_key(made / "study_key.json") == study[1]
    other = build_study(**arguments(people, seed=1, keypoints=None))[1]
    assert other.study != study[1].study
    assert list(other.files.values()) != list(study[1].files.values())


def test_one_method_alone_is_judged_but_not_compared(people: Path) -> None:
    only = {"real": people / "market1501/query", "methods": {"PIDM": people / "PIDM"}}
    with pytest.raises(UserError, match="query: 18 images, the study needs 30"):
        build_study(**only)
    page, key = build_study(**{**only, "real": people / "market1501/bounding_box_train"})
    assert contents(page)["sets"] == []
    answers = Answers(**answered(key, r2g=0, g2r=0, best={}))
    assert score_study(key, [answers]).jab == {}


def test_junk_and_distractors_are_not_shown_as_real(people: Path, tmp_path: Path) -> None:
    image = next((people / "market1501/bounding_box_train").iterdir()).read_bytes()
    for number in range(40):
        pid = "-1" if number < 5 else "0000" if number < 10 else "0007"
        write_bytes(tmp_path / f"{pid}_c1s1_{number:06d}_00.jpg", image)
    only = {"real": tmp_path, "methods": {"PIDM": people / "PIDM"}}
    key = build_study(**only)[1]
    real = {key.files[name] for name, kind in key.images.items() if kind == "real"}
    assert {name[:4] for name in real} == {"0007"}
    assert len(real) == 30


@pytest.mark.parametrize(
    ("source", "target", "forms"),
    [
        ("a_2_{}", "b", ("{source}.png_2_b_vis",)),  # a source with the mark of a pair in its name
        (
            "s_visit{}",
            "t",
            ("{source}_2_t_vis_1", "{source}.png___t.png_vis", "{source}_to_t"),
        ),
    ],
)
def test_sets_are_read_from_names_of_other_forms(
    people: Path, tmp_path: Path, source: str, target: str, forms: tuple[str, ...]
) -> None:
    image = next((people / "PIDM").iterdir()).read_bytes()
    for number in range(30):
        name = source.format(number)
        write_bytes(tmp_path / f"sources/{name}.png", image)
        for method in ("PIDM", "GFLA"):
            pair = forms[number % len(forms)].format(source=name)
            write_bytes(tmp_path / f"{method}/{pair}.png", image)
    write_bytes(tmp_path / f"truth/{target}.png", image)
    methods = {name: tmp_path / name for name in ("PIDM", "GFLA")}
    folders = {"sources": tmp_path / "sources", "truth": tmp_path / "truth"}
    key = build_study(people / "market1501/bounding_box_train", methods, **folders)[1]
    assert len(key.sets) == SETS


# ---------------------------------------------------------------- shares and intervals


def test_one_rater_gets_wilsons_intervals(study: tuple[str, Key]) -> None:
    key = study[1]
    score = score_study(key, [Answers(**answered(key, r2g=3, g2r=15, best=BEST))])
    assert score.r2g.value == 3 / 30
    assert score.g2r.value == 15 / 30
    assert {name: share.value for name, share in score.jab.items()} == {
        "PIDM": 17 / 30, "GFLA": 13 / 30, "DPTN": 0,
    }  # fmt: skip
    z2 = 1.959964**2  # Wilson (1927): (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)
    half = math.sqrt(z2 * (0.1 * 0.9 / 30 + z2 / 3600)) / (1 + z2 / 30)
    middle = (0.1 + z2 / 60) / (1 + z2 / 30)
    assert (score.r2g.low, score.r2g.high) == pytest.approx((middle - half, middle + half))
    assert (score.jab["DPTN"].low, score.jab["DPTN"].high) == pytest.approx(
        (0, z2 / (30 + z2)), abs=1e-6
    )


def test_the_table_shows_the_papers_figures_beside(study: tuple[str, Key]) -> None:
    key = study[1]
    text = score_study(key, [Answers(**answered(key, r2g=3, g2r=15, best=BEST))]).text()
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "R2G 10.0% 3.5% - 25.6% -" in lines
    assert "G2R 50.0% 33.2% - 66.8% 48%" in lines
    assert "Jab PIDM 56.7% 39.2% - 72.6% 56%" in lines
    assert "Jab DPTN 0.0% 0.0% - 11.4% -" in lines
    assert any("raters: 1; intervals: Wilson" in line for line in lines)


def test_raters_who_agree_are_no_more_than_one(study: tuple[str, Key]) -> None:
    # Drawing raters anew changes nothing then: the mean is that of 30 draws, a binomial.
    said = np.tile(np.arange(30) < 12, (5, 1))
    found = share(said)
    assert found.value == pytest.approx(12 / 30)
    exact = binom.ppf((0.025, 0.975), 30, 0.4) / 30
    assert (found.low, found.high) == pytest.approx(exact, abs=1 / 60)


def test_images_that_agree_leave_the_raters() -> None:
    # Two raters of whom one says always yes: both draws are the same one half of the time.
    found = share(np.array([[True] * 30, [False] * 30]))
    assert (found.value, found.low, found.high) == (0.5, 0, 1)


@pytest.mark.parametrize(("said", "low", "high"), [(True, 0.886, 1), (False, 0, 0.114)])
def test_unanimous_answers_are_not_called_certain(said: bool, low: float, high: float) -> None:
    found = share(np.full((8, 30), said))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


def test_several_raters_are_averaged(study: tuple[str, Key]) -> None:
    key = study[1]
    one = answered(key, r2g=0, g2r=10, best=BEST, rater="a")
    two = answered(key, r2g=0, g2r=20, best={"PIDM": 0, "GFLA": 30, "DPTN": 0}, rater="b")
    score = score_study(key, [Answers(**one), Answers(**two)])
    assert (score.raters, score.g2r.value) == (2, (10 + 20) / 60)
    assert score.jab["PIDM"].value == pytest.approx(17 / 60)
    assert score.jab["PIDM"].low < 17 / 60 < score.jab["PIDM"].high
    assert "bootstrap over raters and images" in score.text()


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        ({"real": "nowhere"}, "nowhere: no such folder", BAD_DATA),
        ({"generated": "few"}, "few: 1 images, the study needs 30", BAD_DATA),
        ({"generated": ""}, "build needs --real DIR and --generated DIR", USAGE),
        ({"seed": "-1"}, "seed -1 is negative", USAGE),
        ({"set": "GFLA"}, "set 'GFLA' is not NAME=DIR", USAGE),
        ({"set": "PIDM=GFLA"}, "set 'PIDM=GFLA' is not NAME=DIR with a NAME of its own", USAGE),
        ({"set": "A=few"}, "few: 39 of the 40 images to compare are not in it, such as", BAD_DATA),
        ({"sources": ""}, "comparing methods (--set) needs --sources and --truth", USAGE),
        ({"sources": "few"}, "is not in few", BAD_DATA),
        ({"truth": "few"}, "is not in few", BAD_DATA),
        ({"keypoints": "few/no.csv"}, "few/no.csv", BAD_DATA),
        ({"generated": "odd", "set": "A=odd"}, "is not named <source>_2_<target>_vis", BAD_DATA),
        (
            {"generated": "broken", "set": None, "sources": None, "truth": None},
            "not a whole image",
            BAD_DATA,
        ),
        ({"set": None}, "--sources, --truth and --keypoints are for sets", USAGE),
        ({"set": ",".join(f"m{n}=GFLA" for n in range(9))}, "10 methods, at most 9", USAGE),
    ],
)
def test_folders_that_make_no_study_are_refused(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any], message: str, code: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(people)
    first = sorted((people / "PIDM").iterdir())[0]
    write_bytes(people / "few" / first.name, first.read_bytes())
    for number in range(30):
        write_bytes(people / f"odd/{number}.png", first.read_bytes())
        write_bytes(people / f"broken/{number}_2_{number}_vis.png", b"\x89PNG")
    train = "market1501/bounding_box_train"
    options = {"real": train, "generated": "PIDM", "set": "GFLA=GFLA", "sources": train}
    options |= {"truth": train, "out": str(tmp_path / "study.html"), **change}
    given = {f"--{name}": value for name, value in options.items() if value is not None}
    flags = [text for flag in given.items() for text in flag]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        tool("build", *flags)
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_new_study_does_not_overwrite_the_key_of_another(
    study: tuple[str, Key], made: Path
) -> None:
    before = (made / "study_key.json").read_bytes()
    write_study(*study, made / "study.html")  # the same again
    with pytest.raises(UserError, match=r"study_key\.json: belongs to another study"):
        write_study(study[0], replace(study[1], study="0123"), made / "study.html")
    assert (made / "study_key.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "0123456789abcdef"}, "answers to another study"),
        ({"images": {}}, "60 of 90 questions are not answered, the first is image-01"),
        ({"sets": {}}, "30 of 90 questions are not answered, the first is set-01"),
        ({"images": {"image-01": "maybe"}}, "image-01: 'maybe' is not an answer"),
        ({"images": {"image-01": ["real"]}}, "image-01: '['real']' is not an answer"),
        ({"sets": {"set-01": "set-02-1"}}, "set-01: 'set-02-1' is not an answer"),
        ({"sets": {"set-99": "set-99-1"}}, "set-99: 'set-99-1' is not an answer"),
        ({"images": []}, "is not answers saved by a study's page ('images' is wrong)"),
        ({"rater": 5}, "is not answers saved by a study's page ('rater' is wrong)"),
        ({"more": 1}, "is not answers saved by a study's page"),
    ],
)
def test_answers_that_are_not_whole_are_refused(
    study: tuple[str, Key], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    key = study[1]
    value = answered(key, r2g=0, g2r=0, best=BEST)
    for name, new in change.items():
        value[name] = {**value[name], **new} if new and isinstance(new, dict) else new
    write_json(tmp_path / "answers.json", value)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_answers(tmp_path / "answers.json", key)
    assert error.value.code == BAD_DATA
    assert str(tmp_path / "answers.json") in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "is not a study's key"),
        ('{"study": "a", "images": {}, "sets": {}, "files": {}}', "damaged"),
        ('{"study": "a", "images": {"1": ["real"]}, "sets": {}, "files": {}}', "damaged"),
    ],
)
def test_a_broken_key_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study_key.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        tool("score", "--key", tmp_path / "study_key.json", tmp_path / "answers.json")
    assert error.value.code == BAD_DATA


def test_a_rater_counts_once(made: Path, study: tuple[str, Key], tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", answered(study[1], r2g=0, g2r=0, best=BEST))
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(UserError, match="rater a: two of the files are theirs"):
        tool("score", "--key", made / "study_key.json", tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(UserError, match="score needs the files that raters saved"):
        tool("score", "--key", made / "study_key.json")
    with pytest.raises(UserError, match="'count' is neither build nor score"):
        tool("count")


def test_the_commands_of_the_documentation_run(
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    market = people / "market1501"
    there = {"data/market1501/bounding_box_test": market / "bounding_box_train"}
    pairs = "results/pairs/market1501"  # as tools/render_pairs.py makes them
    there |= {f"{pairs}/{part}": market / "bounding_box_train" for part in ("sources", "targets")}
    there |= {f"{pairs}/keypoints.csv": market / "exact-annotation-train.csv"}
    there |= {f"{pairs}/images": people / "PIDM"}
    there |= {f"out/{name.lower()}": people / name for name in METHODS}
    for name, place in there.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(place)
    page = (Path(__file__).parent.parent / "docs/user_study.md").read_text()
    block = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0].replace("\\\n", " ")
    build, score = (shlex.split(line)[2:] for line in block.splitlines())
    assert tool(*build) == DONE
    answers = answered(read_key(Path("study_key.json")), r2g=3, g2r=12, best=BEST)
    write_json(Path("answers-a.json"), answers)
    assert score[-1] == "answers-*.json"
    assert tool(*score[:-1], *Path().glob(score[-1])) == DONE
    assert re.search(r"G2R +40", capsys.readouterr().out)


# ---------------------------------------------------------------- in a browser


def test_a_rater_answers_by_mouse_and_keys_and_is_scored(
    browser: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from playwright import sync_api as playwright

    key = read_key(made / "study_key.json")
    wanted = answered(key, r2g=6, g2r=12, best=BEST)
    page = browser.new_page()
    asked, broken = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto((made / "study.html").as_uri())
    page.get_by_role("button", name="Start").click()
    count = playwright.expect(page.locator("#count"))
    for number, answer in enumerate(wanted["images"].values()):
        count.to_have_text(f"{number + 1} of 60")
        if number == 20:  # a slip, taken back
            page.keyboard.press("g" if answer == "real" else "r")
            count.to_have_text("22 of 60")
            page.keyboard.press("Backspace")
            count.to_have_text("21 of 60")
        if number == 40:  # closed, and opened again
            page.keyboard.press("Control+g")  # a command of the browser's is no answer
            page.reload()
            count.to_have_text("41 of 60")
        if number % 2:
            page.click(f"#image button[data-answer={answer}]")
        else:
            page.keyboard.press(answer[0])
    playwright.expect(page.get_by_role("heading", name="Which image is best?")).to_be_visible()
    page.keyboard.press("Backspace")  # the way back is closed
    page.keyboard.press("Enter")
    for number, choice in enumerate(wanted["sets"].values()):
        count.to_have_text(f"{number + 1} of 30")
        if number % 2:
            page.click(f'#choices button[data-answer="{choice}"]')
        else:
            page.keyboard.press(choice[-1])
    playwright.expect(page.locator("#progress")).to_have_attribute("value", "90")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save answers").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    page.get_by_role("button", name="Next person").click()
    playwright.expect(page.locator("#intro")).to_be_visible()
    other = page.evaluate("answers.rater")
    page.close()
    assert not broken
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    given = read_json(saved)
    assert given["rater"] != other
    assert given["images"] == wanted["images"]
    assert given["sets"] == wanted["sets"]
    assert saved.name == f"answers-{given['rater']}.json"
    assert tool("score", "--key", made / "study_key.json", saved) == DONE
    printed = " ".join(capsys.readouterr().out.split())
    assert "R2G 20.0%" in printed
    assert "G2R 40.0%" in printed
    assert "Jab PIDM 56.7%" in printed


def test_enter_goes_on_at_once_after_a_click(browser: Any, made: Path) -> None:
    page = browser.new_page()
    page.goto((made / "study.html").as_uri())
    shown = page.evaluate(
        """() => {  // in one go, before the browser draws and takes the focus off what is hidden
            const press = (key) => document.activeElement.dispatchEvent(
                new KeyboardEvent("keydown", { key, bubbles: true }));
            press("Enter");
            for (let number = 0; number < 60; number++) {
                const button = document.querySelector("#image [data-answer=real]");
                button.focus();
                button.click();
            }
            press("Enter");
            return document.getElementById("count").textContent;
        }"""
    )
    assert shown == "1 of 30"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(browser: Any, made: Path, scheme: str) -> None:
    phone = browser.new_context(
        viewport={"width": 360, "height": 640}, color_scheme=scheme, has_touch=True
    )
    page = phone.new_page()
    page.goto((made / "study.html").as_uri())
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 128) == (scheme == "dark")
    page.get_by_role("button", name="Start").tap()
    fits = "(all => all.scrollWidth <= 360 && all.scrollHeight <= 640)(document.documentElement)"
    assert page.evaluate(fits)
    for _ in range(60):
        page.keyboard.press("r")
    page.get_by_role("button", name="Go on").tap()
    assert page.evaluate(fits)  # three choices below three images, without scrolling
    for image in page.locator("#set img:visible").all():
        box = image.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(64 / 128, abs=0.02)
    phone.close()
