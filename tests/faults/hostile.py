"""Files made to harm: nothing in them runs, nothing outside is written, memory and time are small.

They are the named bad inputs of `ATTACKS`, watched more closely, and folders whose links lead out.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from faults.bad_inputs import CASES, judged, run_case, two_at_once
from faults.cases import READ, USAGE, Case, settings
from faults.cases.images import JPEG, TRAIN
from faults.harness import Measure, Row, tree

LONGEST_S, MOST_KB = 10.0, 512 << 10
ATTACKS = (
    "weights: a pickle that calls", "weights: an old pickle that calls",
    "weights: a bare pickle that calls", "weights: numpy objects", "weights: a compressed archive",
    "weights: safetensors with a header of 1 GB", "weights: safetensors whose tensors overlap",
    "weights: safetensors beyond the end", "weights: 100,000 tensors", "weights: a sparse tensor",
    "weights: Git-LFS pointer", "authors' checkpoint: a pickle that calls",
    "authors' checkpoint: a pickle of a huge number", "authors' checkpoint: compressed",
    "model: a billion channels", "model: 4,096 channels that the file has not",
    "model: config.json nested 200,000 deep", "run: manifest name leads out",
    "run: a file that is a link to a device", "heat map: objects, which are a pickle",
    "heat map: a header that says 100 TB", "heat map: a header that calls",
    "heat map: a header nested 5,000 deep", "heat map: an archive (.npz)",
    "YAML: tag that calls", "YAML: tag that imports", "YAML: a bomb of aliases",
    "YAML: nested 200,000 deep", "YAML: 20,000 keys", "YAML: 1 MiB",
    "JSON: nested 200,000 deep", "JSON: objects 200,000 deep", "JSON: 65 MiB of nothing",
    "folder: split.json nested 200,000 deep", "folder: real name leads out: up",
    "folder: real name leads out: absolute", "folder: ledger name leads out: up",
    "folder: ledger name leads out: backslashes", "folder: selection name leads out",
    "pairs: name leads out: up", "keypoints: name leads out: absolute",
    "image: 100 Mpx in a few kB", "image: 20,000 x 20,000 bomb",
    "image: PNG with a bomb of compressed text", "image: PNG with a bomb of a colour profile",
    "image: 8 MB of text in a PNG", "image: TIFF that says 2^31 px", "image: 200 MB of nothing",
    "link to an endless device", "pipe named .jpg",
)  # fmt: skip


def _led_out(folder: Path) -> None:
    """An output folder whose training folder is a link to somebody's own files."""
    Case("", settings.PEOPLE, (), 0, "").make(folder)
    (folder / "victim").mkdir()
    (folder / "out/market1501").mkdir(parents=True)
    (folder / "out" / TRAIN).symlink_to(folder / "victim")
    (folder / "given").mkdir()
    (folder / "given/0002_c1_x.jpg").write_bytes(JPEG[:-9] + b"x" + JPEG[-8:])


def _ledger_led_out(folder: Path) -> None:
    """A ledger that is a link to somebody's own file."""
    (folder / "victim.txt").write_text("mine")
    (folder / "manifest.jsonl").symlink_to(folder / "victim.txt")


APPEND = (
    "from pathlib import Path; from pidm_core import run; from pidm_reid import folder; "
    "run(lambda _: folder.append_ledger(Path('manifest.jsonl'), [{'file_name': 'a'}]))"
)
LINKS = (
    Case("output folder whose images would go elsewhere", _led_out,
         (*settings.ON_PEOPLE, "--import-from", "given", "--out", "out"), USAGE, "is a link"),
    Case("ledger that is a link to another file", _ledger_led_out, ("-c", APPEND), 4,
         "symbolic links"),
)  # fmt: skip


def outcome(case: Case) -> str:
    """What is wrong with what came of an attack; '' = nothing."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        home, note = Path(name) / "home", Path(name) / "peak"
        home.mkdir()
        case.make(home)
        before = _files(home)
        done = run_case(case, home, {"PIDM_PEAK": str(note)})
        if said := judged(case, done):
            return said
        if strange := set(_files(home).items()) ^ set(before.items()):
            return f"files changed: {sorted(strange)[:3]}"
        if [p.name for p in Path(name).iterdir() if p not in (home, note)]:
            return "wrote beside its folder"
        return _costly(case, note) if note.is_file() else ""


def _costly(case: Case, note: Path) -> str:
    """What an attack takes beyond what its reader needs for nothing."""
    (kb, seconds), (least_kb, least_s) = _spent(note), _idle(case.command[1])
    if kb - least_kb > MOST_KB or seconds - least_s > LONGEST_S:
        return f"{(kb - least_kb) >> 10} MB and {seconds - least_s:.0f} s more than a good file"
    return ""


def _spent(note: Path) -> tuple[int, float]:
    kb, seconds = note.read_text().split()
    return int(kb), float(seconds)


@functools.cache
def _idle(kind: str) -> tuple[int, float]:
    """kB and seconds of the processor that a reader's imports cost."""
    with tempfile.TemporaryDirectory() as name:
        case = Case("", {}, (READ, kind, "none"), 0, "")
        run_case(case, Path(name), {"PIDM_PEAK": f"{name}/peak"})
        return _spent(Path(name) / "peak")


def _files(home: Path) -> dict[str, str]:
    """What lies in a folder; the large files of nothing are not read."""
    large = [p.name for p in home.rglob("*") if p.is_file() and p.stat().st_size > 1 << 24]
    return tree(home, without=large)


def _wrong(name: str) -> str:
    try:
        said = outcome(next(case for case in (*LINKS, *CASES) if case.name == name))
    except Exception as error:
        said = f"the case itself: {error!r}"
    return said and f"{name}: {said}"


def hostile_files(number: int) -> Row:
    """All of them, or (N under 10) every twentieth."""
    row = Row("hostile files", "nothing runs, nothing outside is written, +512 MB and 10 s at most")
    names = [*(case.name for case in LINKS), *ATTACKS]
    for said in two_at_once(_wrong, names[:: 1 if number >= 10 else 20]):
        row.check(not said, said)
    return row


MEASURES: tuple[Measure, ...] = (hostile_files,)
