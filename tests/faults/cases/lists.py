"""Keypoint files, pair lists, splits, ledgers and plans."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from faults.cases import BAD_DATA, DONE, Case, Files, reading, sparse
from faults.cases.images import JPEG, MARKET, TRAIN
from pidm_core import sha256, write_bytes
from pidm_core.keypoints import HEADER, csv_row
from pidm_reid import folder as augmented

NAMES = sorted(path.rpartition("/")[2] for path in MARKET)
DEEP = "[" * 200_000
WAYS_OUT = {
    "up": "../../etc/passwd.jpg",
    "absolute": "/etc/passwd.jpg",
    "drive": "C:\\secret.jpg",
    "backslashes": "..\\..\\secret.jpg",
    "NUL": "a\0.jpg",
    "escape sequence": "a\x1b[2J.jpg",
}


def person(shift: int = 0) -> np.ndarray:
    """Somebody upright in a frame of 32 x 64 px, all joints there: (18, 2)."""
    x, y = np.tile([10.0, 20.0, 15.0], 6), np.linspace(4, 58, 18)
    joints = np.stack([x, y], axis=1)
    joints[[2, 5, 8, 11]] = [(10, 15), (20, 15), (11, 35), (19, 35)]
    return joints + shift


def csv(rows: Mapping[str, np.ndarray]) -> str:
    """A PATN file."""
    return "\n".join([HEADER, *(csv_row(name, joints) for name, joints in rows.items())]) + "\n"


ROW = csv_row("a.jpg", person())
GOOD = csv({"a.jpg": person()})
FLAT = [float(v) for joint in person() for v in (*joint, 1.0)]


# ---------------------------------------------------------------- keypoints as CSV


def csv_case(name: str, content: bytes | str, says: str, code: int = BAD_DATA) -> Case:
    """A CSV of keypoints."""
    return Case(f"keypoints: {name}", {"k.csv": content}, reading("joints", "k.csv"), code, says)


def row(y: str, x: str, name: str = "a.jpg") -> str:
    """A CSV with one row."""
    return f"{HEADER}\n{name}: [{y}]: [{x}]\n"


SEVENTEEN, EIGHTEEN = ", ".join(["5"] * 17), ", ".join(["5"] * 18)
ALL = "1 people, 18 joints, a.jpg nose [10.0, 4.0]"
CSV = (
    Case("keypoints: no such file", {}, reading("joints", "k.csv"), BAD_DATA, "no such file"),
    csv_case("empty", "", "the file is empty"),
    csv_case("blank lines", "\n \n", "the file is empty"),
    csv_case("header only", HEADER + "\n", "a header and no rows"),
    csv_case("no header", ROW + "\n", ":1: the header is not"),
    csv_case("other header", "name,y,x\na,1,2\n", ":1: the header is not"),
    csv_case("commas for colons", f"{HEADER}\na.jpg,[1],[2]\n", ":2: expected 'name:"),
    csv_case("17 joints", row(SEVENTEEN, SEVENTEEN), ":2: 17 joints instead of 18"),
    csv_case("19 joints", row(EIGHTEEN + ", 5", EIGHTEEN + ", 5"), ":2: 19 joints"),
    csv_case("y without x", row(EIGHTEEN, SEVENTEEN), ":2: 17 joints"),
    csv_case("NaN", row(SEVENTEEN + ", NaN", EIGHTEEN), ":2: NaN, Infinity"),
    csv_case("Infinity", row(SEVENTEEN + ", -Infinity", EIGHTEEN), ":2: NaN, Infinity"),
    csv_case("1e400", row(SEVENTEEN + ", 1e400", EIGHTEEN), ":2: NaN, Infinity"),
    csv_case("1e300", row(SEVENTEEN + ", 1e300", EIGHTEEN), ":2: NaN, Infinity"),
    csv_case("a number of 400 digits", row(SEVENTEEN + ", " + "9" * 400, EIGHTEEN), ":2: NaN"),
    csv_case("a number of 9,000 digits", row(SEVENTEEN + ", " + "9" * 9000, EIGHTEEN), "not a"),
    csv_case("null", row(SEVENTEEN + ", null", EIGHTEEN), ":2: expected a list of numbers"),
    csv_case("text for a number", row(SEVENTEEN + ', "5"', EIGHTEEN), ":2: expected a list"),
    csv_case("true for a number", row(SEVENTEEN + ", true", EIGHTEEN), ":2: expected a list"),
    csv_case("nested 200,000 deep", f"{HEADER}\na.jpg: {DEEP}: [1]\n", ":2: "),
    csv_case("one image twice, differently", GOOD + csv_row("a.jpg", person(1)) + "\n",
             ":3: 'a.jpg' stands twice"),
    csv_case("one image twice, alike", GOOD + ROW + "\n", ALL, DONE),
    csv_case("CRLF", GOOD.replace("\n", "\r\n"), ALL, DONE),
    csv_case("BOM", b"\xef\xbb\xbf" + GOOD.encode(), ALL, DONE),
    csv_case("UTF-16", GOOD.encode("utf-16"), "not UTF-8 text"),
    csv_case("bytes of an image", JPEG, "not UTF-8 text"),
    csv_case("no line end at the end", GOOD.rstrip("\n"), ALL, DONE),
    csv_case("no joint at all", row(", ".join(["-1"] * 18), ", ".join(["-1"] * 18)),
             "1 people, 0 joints", DONE),
    csv_case("missing joints as -1", row(SEVENTEEN + ", -1", EIGHTEEN), "17 joints", DONE),
    csv_case("coordinates from 0 to 1", csv({}) + "a.jpg: " + str([0.5] * 18) + ": "
             + str([0.25] * 18) + "\n", "all coordinates are at most 1"),
    csv_case("x and y swapped", csv({f"{k}.jpg": person(k)[:, ::-1] for k in range(20)}),
             "x and y are swapped"),
    Case("keypoints: 65 MiB of nothing", sparse("k.csv", 65 << 20), reading("joints", "k.csv"),
         BAD_DATA, "larger than 64 MiB"),
    *(csv_case(f"name leads out: {what}", GOOD.replace("a.jpg", name), "leaves the data folder")
      for what, name in WAYS_OUT.items() if what not in ("drive", "escape sequence")),
)  # fmt: skip


# ---------------------------------------------------------------- keypoints as JSON


def json_case(name: str, value: Any, says: str, code: int = BAD_DATA) -> Case:
    """A JSON file of keypoints; text is taken as it is."""
    text = value if isinstance(value, str) else json.dumps(value)
    files = {"a_keypoints.json": text}
    return Case(f"JSON: {name}", files, reading("joints", "a_keypoints.json"), code, says)


def openpose(*people: list[float]) -> dict[str, Any]:
    """A file of OpenPose."""
    return {"version": 1.3, "people": [{"pose_keypoints_2d": joints} for joints in people]}


def doubtful(flat: list[float], confidence: float) -> list[float]:
    """The same joints, less certain and 5 px further right."""
    return [v + 5 if k % 3 == 0 else confidence if k % 3 == 2 else v for k, v in enumerate(flat)]


COCO = {"image_id": "a.jpg", "keypoints": FLAT[:51], "score": 0.9}
JSON = (
    json_case("empty object", {}, "neither OpenPose"),
    json_case("not JSON", "{'people': []}", "not valid JSON"),
    json_case("cut off", json.dumps(openpose(FLAT))[:-30], "not valid JSON"),
    json_case("nested 200,000 deep", DEEP, "not valid JSON"),
    json_case("objects 200,000 deep", '{"people":' * 200_000, "not valid JSON"),
    json_case("33 levels", "[" * 33 + "]" * 33, "nested deeper than 32"),
    json_case("a key twice", '{"people": [], "people": []}', "stands twice"),
    json_case("NaN", '{"people": [{"pose_keypoints_2d": [NaN]}]}', "NaN is not a number"),
    json_case("Infinity", '{"people": [{"pose_keypoints_2d": [-Infinity]}]}', "not a number"),
    json_case("1e400", '{"people": [{"pose_keypoints_2d": [1e400]}]}', "not a number"),
    json_case("half a character", '{"people": [], "a": "\\ud800"}', "not valid JSON"),
    json_case("null for joints", openpose(None), "flat list"),  # type: ignore[arg-type]
    json_case("text among joints", openpose(["1", *FLAT[1:]]), "flat list"),  # type: ignore[list-item]
    json_case("joints in pairs", openpose([FLAT[:3]] * 18), "flat list"),  # type: ignore[list-item]
    json_case("17 joints of OpenPose", openpose(FLAT[:51]), "18 or 25 joints"),
    json_case("no confidences", openpose(FLAT[:36]), "18 or 25 joints"),
    json_case("a number for a person", {"people": [3]}, "flat list"),
    json_case("nobody", openpose(), "1 people, 0 joints", DONE),
    json_case("two people, the surer counts", openpose(doubtful(FLAT, 0.5), FLAT), ALL, DONE),
    json_case("two people, the surer first", openpose(FLAT, doubtful(FLAT, 0.5)), ALL, DONE),
    json_case("25 joints", openpose([*FLAT, *FLAT[:21]]), "1 people, 18 joints", DONE),
    json_case("huge coordinates", openpose([1e300, *FLAT[1:]]), "no pixel"),
    json_case("COCO, a bare list of numbers", [1, 2, 3], "neither OpenPose"),
    json_case("COCO, 18 joints", [{**COCO, "keypoints": FLAT}], "17 joints"),
    json_case("COCO, unknown image number", [{**COCO, "image_id": 7}], "no file name"),
    json_case("COCO, a list for an image", [{**COCO, "image_id": [1]}], "neither OpenPose"),
    json_case("COCO, text for a score", [{**COCO, "score": "high"}], "score is not a number"),
    json_case("COCO, images without names", {"images": [{"id": 1}], "annotations": []},
              "neither OpenPose"),
    json_case("COCO, lists for numbers", {"images": [{"id": [], "file_name": "a"}],
                                           "annotations": []}, "neither OpenPose"),
    json_case("COCO, no annotations", {"images": [], "annotations": None}, "neither OpenPose"),
    json_case("COCO, an empty list", [], "no keypoints"),
    json_case("COCO, the higher score counts",
              [COCO, {**COCO, "score": 0.1, "keypoints": doubtful(FLAT[:51], 1)}],
              "a.jpg nose [10.0, 4.0]", DONE),
    *(json_case(f"name leads out: {what}", [{**COCO, "image_id": name}], "leaves the data folder")
      for what, name in WAYS_OUT.items()),
    Case("JSON: 65 MiB of nothing", sparse("a.json", 65 << 20), reading("joints", "a.json"),
         BAD_DATA, "larger than 64 MiB"),
)  # fmt: skip


# ---------------------------------------------------------------- keypoints as text and heat maps


def npy(array: np.ndarray, **options: Any) -> bytes:
    """A .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    """A .npy file with this header and a few bytes."""
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\0" + len(body).to_bytes(2, "little") + body + b"\0" * 64


def _npz() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros((4, 4, 18))))
    return buffer.getvalue()


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 18)}"
HEAT_MAPS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a NumPy array"),
    "objects, which are a pickle": (
        npy(np.array([{}], dtype=object), allow_pickle=True),
        "not a NumPy array",
    ),
    "wrong shape": (npy(np.zeros((4, 4, 17))), "is not (height, width, 18)"),
    "no pixels": (npy(np.zeros((0, 4, 18))), "not"),
    "a header that says 100 TB": (npy_header(HUGE), "not a NumPy array"),
    "a negative shape": (npy_header(HUGE.replace("1000000", "-4")), "not a NumPy array"),
    "a header nested 5,000 deep": (npy_header("(" * 5000), "not a NumPy array"),
    "a header that calls": (npy_header("__import__('os').system('touch canary')"), "not a NumPy"),
    "complex numbers": (npy(np.zeros((4, 4, 18), complex)), "heat maps of complex128"),
    "text": (npy(np.full((4, 4, 18), "a")), "heat maps of <U1"),
    "records": (npy(np.zeros((4, 4, 18), [("a", "f8")])), "heat maps of"),
    "NaN": (npy(np.full((4, 4, 18), np.nan)), "with NaN"),
    "an archive (.npz)": (_npz(), "not a NumPy array"),
}
TEXT = {
    "17 rows": ("1 2\n" * 17, "17 joints instead of 18"),
    "three columns": ("1 2 3\n" * 18, ":1: expected 'x y'"),
    "words": ("left hand\n" * 18, ":1: expected 'x y'"),
    "nan": ("1 2\nnan 2\n" + "1 2\n" * 16, ":2: expected 'x y', two finite"),
    "inf": ("1 2\n" * 17 + "1 inf\n", ":18: expected 'x y', two finite"),
}


def _pipes(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "poses").mkdir()
        os.mkfifo(folder / "poses" / name)

    return make


OTHERS = (
    *(Case(f"heat map: {name}", {"a.npy": data}, reading("joints", "a.npy"), BAD_DATA, why)
      for name, (data, why) in HEAT_MAPS.items()),
    Case("heat map: 65 MiB of nothing", sparse("a.npy", 65 << 20), reading("joints", "a.npy"),
         BAD_DATA, "larger than 64 MiB"),
    *(Case(f"keypoint text: {name}", {"a.txt": text}, reading("joints", "a.txt"), BAD_DATA, why)
      for name, (text, why) in TEXT.items()),
    *(Case(f"poses/: a pipe named {name}", _pipes(name), reading("joints", "poses"), BAD_DATA, "no")
      for name in ("a.npy", "a.txt", "a.json")),
    Case("poses/: empty", lambda folder: (folder / "poses").mkdir(), reading("joints", "poses"),
         BAD_DATA, "holds no keypoints"),
    Case("poses/: two files of one image",
         {"p/a.txt": "1 2\n" * 18, "p/a.json": json.dumps(openpose(FLAT))}, reading("joints", "p"),
         BAD_DATA, "stands twice"),
)  # fmt: skip


# ---------------------------------------------------------------- pair lists and people

POSES = {"k.csv": csv({name: person(k) for k, name in enumerate(NAMES)})}
SAME, OTHER = f"{NAMES[0]},{NAMES[1]}", f"{NAMES[0]},{NAMES[-1]}"


def pair_case(name: str, content: str | bytes, says: str, code: int = BAD_DATA,
              file: str = "p.csv") -> Case:  # fmt: skip
    """A pair list of a Market-1501 root."""
    files = {**MARKET, **POSES, file: content}
    return Case(f"pairs: {name}", files, reading("people", ".", "k.csv", file), code, says)


PAIRS = (
    pair_case("empty", "", "the header is not 'from,to'"),
    pair_case("header only", "from,to\n", "holds no pairs"),
    pair_case("other header", f"a,b\n{SAME}\n", ":1: the header is not"),
    pair_case("one column", f"from,to\n{NAMES[0]}\n", ":2: expected 'source,target'"),
    pair_case("three columns", f"from,to\n{SAME},{NAMES[2]}\n", ":2: expected 'source,target'"),
    pair_case("commas and blanks alone", f"from,to\n , \t,\n{SAME}\n", "pairs: 1", DONE),
    pair_case("unknown image", f"from,to\n{NAMES[0]},nobody.jpg\n", ":2: 'nobody.jpg' is none"),
    pair_case("an address", f"from,to\n{NAMES[0]},http://x.org/a.jpg\n", ":2: 'http://x.org"),
    pair_case("an image with itself", f"from,to\n{NAMES[0]},{NAMES[0]}\n", "one image twice"),
    pair_case("two people", f"from,to\n{OTHER}\n", ":2: two people in a pair"),
    pair_case("UTF-16", f"from,to\n{SAME}\n".encode("utf-16"), "not UTF-8 text"),
    pair_case("CRLF and BOM", f"\ufefffrom,to\r\n{SAME}\r\n", "pairs: 1", DONE),
    pair_case("the same pair twice", f"from,to\n{SAME}\n{SAME}\n", "pairs: 2", DONE),
    pair_case("JSON, other keys", '[{"a": 1}]', "entry 1 has no source_image"),
    pair_case("JSON, cut off", '[{"source_image": ', "not valid JSON"),
    pair_case("JSON, nested 200,000 deep", DEEP, "not valid JSON"),
    pair_case("text, target only", f"{NAMES[0]}\n", ":1: expected 'target,source", file="p.txt"),
    *(pair_case(f"name leads out: {what}", f"from,to\n{NAMES[0]},{name}\n", "leaves the data")
      for what, name in WAYS_OUT.items() if what != "escape sequence"),
    Case("pairs: 65 MiB of nothing", sparse("p.csv", 65 << 20), reading("pairs", "p.csv"),
         BAD_DATA, "larger than 64 MiB"),
    Case("pairs: a folder", lambda folder: (folder / "p.csv").mkdir(), reading("pairs", "p.csv"),
         BAD_DATA, "no such file"),
)  # fmt: skip


def _trained(rows: Mapping[str, np.ndarray], **more: bytes) -> Files:
    keypoints = {"market1501/market-annotation-train.csv": csv(rows)}
    return {**MARKET, **keypoints, **{f"{TRAIN}/{name}": data for name, data in more.items()}}


NOBODY = np.full((18, 2), np.nan)
PEOPLE = (
    Case("training: joints of none of the images", _trained({"0009_c1s1_000000_00.jpg": person()}),
         reading("training", "."), BAD_DATA, "none of 8 images forms a training pair"),
    Case("training: nobody shows hips and shoulders",
         _trained(dict.fromkeys(NAMES, NOBODY)), reading("training", "."), BAD_DATA,
         "none of 8 images forms a training pair"),
    Case("training: one usable image of each person",
         _trained({NAMES[0]: person(), NAMES[-1]: person()}), reading("training", "."), BAD_DATA,
         "no identity has two images"),
    Case("training: half of the images without joints",
         _trained({name: person() for name in NAMES[:4]}), reading("training", "."), DONE,
         "12 pairs"),
    Case("training: joints of larger images",
         {**MARKET, "k.csv": csv({name: person() * 3 for name in NAMES})},
         reading("people", ".", "k.csv"), BAD_DATA, "lie outside the image"),
    Case("training: joints of images of half the size",
         {**{f"{TRAIN}/{2 + k // 9:04d}_c1s1_{k:06d}_00.jpg": JPEG for k in range(20)},
          "k.csv": csv({f"{2 + k // 9:04d}_c1s1_{k:06d}_00.jpg": person() / 2 for k in range(20)})},
         reading("people", ".", "k.csv"), BAD_DATA, "for smaller images"),
)  # fmt: skip


# ---------------------------------------------------------------- augmented folders

SPLIT: dict[str, Any] = {
    "format": 1, "ratio": 0.5, "seed": 0, "poses": "D_tr", "plan": "", "settings": {},
    "renderer": "tint", "generator_saw": "D_tr", "real": NAMES[:2],
}  # fmt: skip
MADE = f"{NAMES[0].removesuffix('.jpg')}_pidm0000.jpg"


def augmented_folder(
    split: Any = SPLIT, entries: list[dict[str, Any]] | None = None, tail: str = "", **files: str
) -> Callable[[Path], None]:
    """Writes an augmented folder: two real images and a generated one."""
    entry = {"file_name": MADE, "role": "train", "sha256": sha256(JPEG)}

    def make(folder: Path) -> None:
        text = split if isinstance(split, str) else json.dumps(split)
        write_bytes(folder / "split.json", text.encode())
        for name in (*NAMES[:2], MADE):
            write_bytes(folder / TRAIN / name, JPEG)
        augmented.append_ledger(folder / "manifest.jsonl", entries or [entry])
        with (folder / "manifest.jsonl").open("a") as file:
            file.write(tail)
        for name, content in files.items():
            write_bytes(folder / name.replace("_jsonl", ".jsonl"), content.encode())

    return make


def folder_case(name: str, says: str, code: int = BAD_DATA, **given: Any) -> Case:
    """An augmented folder that is not as it should be."""
    return Case(f"folder: {name}", augmented_folder(**given), reading("augmented", "."), code, says)


def without(key: str) -> dict[str, Any]:
    """split.json without a key."""
    return {k: v for k, v in SPLIT.items() if k != key}


def _entry(**changes: Any) -> list[dict[str, Any]]:
    return [{"file_name": MADE, "role": "train", "sha256": sha256(JPEG), **changes}]


FOLDER = (
    Case("folder: none", {}, reading("augmented", "."), BAD_DATA, "not an augmented folder"),
    folder_case("good", "2 real, 1 synthetic", DONE),
    folder_case("split.json cut off", "not valid JSON", split=json.dumps(SPLIT)[:-9]),
    folder_case("split.json nested 200,000 deep", "not valid JSON", split=DEEP),
    folder_case("split.json is a list", "not a split of format 1", split=[]),
    folder_case("split.json of a later format", "not a split", split={**SPLIT, "format": 2}),
    folder_case("split.json without names", "'real' is missing", split=without("real")),
    folder_case("split.json without seed", "'seed' is missing", split=without("seed")),
    folder_case("split.json with text for a seed", "'seed' is", split={**SPLIT, "seed": "0"}),
    folder_case("split.json with numbers for names", "not the name", split={**SPLIT, "real": [3]}),
    folder_case("split.json with a name of nobody", "no person",
                split={**SPLIT, "real": ["a.jpg"]}),
    *(folder_case(f"real name leads out: {what}", "name",
                  split={**SPLIT, "real": [name]})
      for what, name in WAYS_OUT.items() if what in ("up", "absolute", "drive", "backslashes")),
    *(folder_case(f"ledger name leads out: {what}", "name", entries=_entry(file_name=name))
      for what, name in WAYS_OUT.items() if what in ("up", "absolute", "drive", "backslashes")),
    folder_case("ledger name is a number", "not the name of a file", entries=_entry(file_name=7)),
    folder_case("ledger line torn by a crash", "1 synthetic", DONE, tail='{"file_name": "0002'),
    folder_case("ledger line altered", "1 synthetic", DONE,
                tail='{"file_name": "0002_c1_pidm0009.jpg", "check": "0123456789abcdef"}\n'),
    folder_case("ledger line nested 200,000 deep", "1 synthetic", DONE, tail=DEEP + "\n"),
    folder_case("ledger lines of other kinds", "1 synthetic", DONE, tail='[1]\n"a"\n7\nnull\n{}\n'),
    folder_case("made for evaluation", "made for evaluation", entries=_entry(role="eval")),
    folder_case("image altered", "missing or changed", entries=_entry(sha256="0" * 64)),
    folder_case("image missing", "missing or changed",
                entries=_entry(file_name="0002_c1_pidm.jpg")),
    folder_case("selection without names", ":1: no file_name", selection_jsonl='{"kept": true}\n'),
    folder_case("selection cut off", ":1: not valid JSON", selection_jsonl='{"file_name": "a'),
    folder_case("selection name leads out", "not the name of a file",
                selection_jsonl='{"file_name": "../a.jpg", "kept": false}\n'),
    folder_case("selection that drops it", "2 real, 0 synthetic", DONE,
                selection_jsonl=json.dumps({"file_name": MADE, "kept": False}) + "\n"),
    Case("plan: a line that is a list", {"plan.jsonl": "[1]\n"}, reading("lines", "plan.jsonl"),
         BAD_DATA, ":1: no file_name"),
    Case("plan: name leads out", {"plan.jsonl": '{"file_name": "/etc/a.jpg"}\n'},
         reading("lines", "plan.jsonl"), BAD_DATA, "not the name of a file"),
    Case("seen.json is an object", {"seen.json": "{}"}, reading("seen", "."), BAD_DATA,
         "not a list"),
    Case("seen.json without images", {"seen.json": '[{"data": "a"}]'}, reading("seen", "."), 2,
         "missing"),
    Case("seen.json with numbers", {"seen.json": "[1, 2]"}, reading("seen", "."), 2, "expected"),
    Case("result.json without figures", {"row/result.json": "{}"}, reading("results", "."),
         BAD_DATA, "not the result of a cell"),
    Case("result.json is a list", {"row/result.json": "[]"}, reading("results", "."), BAD_DATA,
         "not the result of a cell"),
    Case("result.json cut off", {"row/result.json": '{"row": '}, reading("results", "."), BAD_DATA,
         "not valid JSON"),
)  # fmt: skip

CASES = (*CSV, *JSON, *OTHERS, *PAIRS, *PEOPLE, *FOLDER)
