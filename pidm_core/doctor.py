"""Is everything here that the tools need? Environment, device, weights, data, disk.

Nothing is imported at the top that may be what is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pidm_core.files import ENVIRONMENT, UserError, load_image, quoted

if TYPE_CHECKING:
    from pidm_core.data import Record

PYTHONS = ((3, 11), (3, 14))  # from, and up to but without
LEAST_FREE, ROOM = 1 << 30, 20 << 30  # bytes of disk: to do anything; for the paper's runs
DECODED = 32  # images of a data set that are opened
EXTRAS = {
    "pose": "tools/extract_poses.py cannot run ViTPose",
    "metrics": "LPIPS is left out of figures",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at: ok; missing, but everything else goes on; or a problem to mend first."""

    name: str
    state: Literal["ok", "missing", "problem"]
    text: str
    """What was found, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.state:8} {self.name:12} {self.text}"


def examine(
    data: str, weights: str, *, student_file: str, keypoints: str = "", pairs: str = ""
) -> Iterator[Check]:
    """Look at everything and yield each finding.

    data: a folder of people, "" = none; weights: a folder of weight files beside torch's cache;
    student_file: name of the ResNet50's file, which only the re-ID side knows; keypoints, pairs:
    files of the people's joints and pairs, "" = those beside the images.
    """
    yield from packages("pidm-reid")
    yield from _guarded("torchvision", torchvision)
    yield from _guarded("device", device)
    yield from _guarded("threads", threads)
    yield disk(Path())
    yield from _guarded("toy model", toy_model)
    yield from _guarded("weights", lambda: weight_files(Path(weights), student_file))
    if data:
        yield from _guarded("data", lambda: people(Path(data), keypoints, pairs))
    else:
        yield Check("data", "missing", "none named; --data DIR looks at a folder of people")


def next_training(data: str | Path, keypoints: str | Path = "", pairs: str | Path = "") -> str:
    """The command that trains PIDM on a folder of people, in a size for this machine."""
    import torch

    size = "small" if torch.cuda.is_available() else "tiny"  # a month of a CPU, or an hour
    files = {"data": data, "keypoints": keypoints, "pairs": pairs}
    flags = "".join(f" --{name} {quoted(path)}" for name, path in files.items() if path)
    return f"python tools/train_pidm.py --config configs/market1501_{size}.yaml{flags}"


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What `look` finds; where it ends in an error, that is the finding."""
    try:
        yield from look()
    except UserError as error:
        yield Check(name, "problem", str(error))
    except Exception as error:  # broken packages raise anything when they are imported
        first = (str(error).splitlines() or [""])[0]
        yield Check(name, "problem", f"{type(error).__name__}: {first}")


# ---------------------------------------------------------------- environment


def packages(project: str) -> Iterator[Check]:
    """Python and the installed packages against what the project's own metadata asks for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        yield Check("Python", "ok", version)
    else:
        yield Check("Python", "problem", f"{version}; make an environment with 3.11, 3.12 or 3.13")
    try:
        required = importlib.metadata.requires(project) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "problem", f"{project} is not installed; run make setup")
        return
    wanted = [line for line in required if "extra ==" not in line]
    lacking = [why for line in wanted if (why := lacks(line))]
    for why in lacking:
        yield Check("packages", "problem", f"{why}; run make setup, or pip install -e .")
    if not lacking:
        yield Check("packages", "ok", f"all {len(wanted)} are here")
    for extra, loss in EXTRAS.items():
        for line in required:
            if f'extra == "{extra}"' in line and (why := lacks(line)):
                text = f"{why}: {loss}; pip install -e '.[{extra}]'"
                yield Check("packages", "missing", text)


def lacks(requirement: str) -> str:
    """Why a requirement such as 'torch>=2.10' is not met; "" if it is."""
    name, least = re.findall(r"^([\w.-]+)(?:>=([\d.]+))?", requirement)[0]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return f"{name} {found} is older than {least}" if _numbers(found) < _numbers(least) else ""


def _numbers(version: str) -> list[int]:
    public = re.match(r"[\d.]*", version)
    return [int(part) for part in public[0].split(".") if part] if public else []


def torchvision() -> Iterator[Check]:
    """Whether torchvision was made for the torch that is here: wrong pairs fail at the import."""
    torch, vision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
    asked = " ".join(importlib.metadata.requires("torchvision") or [])
    for wanted in re.findall(r"\btorch *\(?==([\d.]+)", asked):
        if _numbers(wanted) != _numbers(torch):
            yield Check(
                "torchvision",
                "problem",
                f"{vision} belongs to torch {wanted}, but torch {torch} is here; "
                f"pip install torch=={wanted}, or the torchvision of this torch",
            )
            return
    importlib.import_module("torchvision")
    yield Check("torchvision", "ok", f"{vision}, with torch {torch}")


# ---------------------------------------------------------------- machine


def device() -> Iterator[Check]:
    """Where networks would run, and in which precision."""
    import torch

    from pidm_core.hardware import place

    placement = place()
    if placement.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(placement.device)
        yield Check("device", "ok", f"{gpu.name}, {gpu.total_memory >> 30} GiB, {placement}")
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
        text = f"nvidia-smi is here, but torch ({build} build) sees no GPU; until a torch for "
        yield Check("device", "missing", f"{text}its driver is installed: {placement}")
    else:
        text = f"{placement}; enough for drawn people, the paper's network wants a GPU"
        yield Check("device", "ok", text)


def threads() -> Iterator[Check]:
    """Cores, torch's threads, memory."""
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    text = f"{torch.get_num_threads()} of torch on {cores} cores"
    if sys.platform == "linux":
        text += f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB memory"
    if torch.get_num_threads() > cores:
        text += f"; set OMP_NUM_THREADS={cores}, more only disturb each other"
    yield Check("threads", "ok", text)


def disk(folder: Path) -> Check:
    """Whether results can be written into a folder, and how much."""
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free in {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "problem", f"{folder.resolve()} cannot be written; work elsewhere")
    if free < LEAST_FREE:
        return Check("disk", "problem", f"{text}; free some space")
    if free < ROOM:
        text += f"; a run of the paper's network and its images take up to {ROOM >> 30} GiB"
    return Check("disk", "ok", text)


# ---------------------------------------------------------------- weights


def toy_model() -> Iterator[Check]:
    """Whether the bundled model is whole."""
    from pidm_core.checkpoint import find_model, load_model

    model, *_ = load_model(find_model("toy_market"))
    count = sum(weight.numel() for weight in model.parameters())
    yield Check("toy model", "ok", f"bundled, {count / 1e6:.2f} M parameters")


def weight_files(folder: Path, student_file: str) -> Iterator[Check]:
    """Which weight files lie where the tools look for them; none is needed for drawn people."""
    import torch

    from pidm_core import estimator
    from pidm_core import feature_networks as judges

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for name, files, home, without in (
        ("ResNet50", (student_file,), None, "re-ID starts from scratch"),
        ("Inception", judges.INCEPTION_FILES, folder, "no FID and KID"),
        ("AlexNet", judges.ALEXNET_FILES, folder, "no LPIPS"),
    ):
        try:
            yield _weight_file(name, judges.find_weights(files, home))
        except UserError as error:
            yield _missing(name, files[0], cache, without, error)
    try:
        yield _weight_file("pose network", estimator.find_weights(folder))
    except UserError as error:
        files = (f"ViTPose's config.json and {estimator.VITPOSE_FILE}", estimator.RCNN_FILES[0])
        without = "joints must come with the images"
        yield _missing("pose network", " or ".join(files), folder, without, error)


def _missing(name: str, file: str, home: Path, without: str, error: UserError) -> Check:
    if error.code == ENVIRONMENT:
        return Check(name, "missing", f"{without}, until {file} is in {home}")
    return Check(name, "problem", str(error))  # a file is there, and is none


def _weight_file(name: str, path: Path) -> Check:
    from pidm_core.weight_files import read_weights

    values = sum(weight.numel() for weight in read_weights(path).values())
    return Check(name, "ok", f"{path}, {values / 1e6:.2f} M values")


# ---------------------------------------------------------------- data


def people(root: Path, keypoints: str = "", pair_list: str = "") -> Iterator[Check]:
    """A folder of people: its images, joints and pairs, query and gallery."""
    from pidm_core.data import has_market1501, make_pairs, read_market1501
    from pidm_core.datasets import pose_images, read_people
    from pidm_core.keypoints import NOBODY, missing, passes_patn

    images = pose_images(root)
    yield _images("images", images)
    yield _decoded(images)
    found = read_people(root, keypoints=keypoints, pairs=pair_list)
    joints = [found.keypoints.get(record.name, NOBODY) for record in found.records]
    some = sum(not missing(one).all() for one in joints)
    whole = sum(bool(passes_patn(one)) for one in joints)
    pairs = make_pairs(found.records, found.keypoints) if found.pairs is None else found.pairs
    text = f"in {some:,} of {len(joints):,} images, shoulders and hips in {whole:,}"
    text += f"; {len(pairs):,} training pairs"
    advice = "; nothing to train on: each person needs two such images"
    yield Check("joints", "ok" if len(pairs) else "problem", text + advice * (not len(pairs)))
    if not has_market1501(root):
        return
    for name, subset in (("query", "query"), ("gallery", "bounding_box_test")):
        if has_market1501(root, subset):
            yield _images(name, read_market1501(root, subset))
        else:
            text = f"no folder {subset} in {root}: re-ID cannot be tested, all else can be done"
            yield Check(name, "missing", text)


def _images(name: str, records: Sequence[Record]) -> Check:
    from pidm_core.pair_lists import fashion_key

    told = any(record.camid or fashion_key(record.name) for record in records)
    pids = {record.pid for record in records if record.pid > 0}
    people = f" of {len(pids):,} people" if told else ""  # names of another form tell nobody
    return Check(name, "ok", f"{len(records):,}{people} in {records[0].path.parent}")


def _decoded(records: Sequence[Record]) -> Check:
    """Open some images, evenly chosen."""
    chosen = records[:: max(1, len(records) // DECODED)][:DECODED]
    for record in chosen:
        try:
            load_image(record.path)
        except UserError as error:
            return Check("decoding", "problem", str(error))
    return Check("decoding", "ok", f"{len(chosen)} of the images opened")
