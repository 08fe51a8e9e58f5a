"""The paper's user study (Sec. 4.2, Fig. 5): images -> a web page that asks; answers -> shares.

R2G = share of the real images judged generated; G2R = share of the generated images judged real;
Jab = share of the comparison sets in which a method's image was chosen as the best.
The page holds pixels and ids in shuffled order, nothing else; what they are stands in the key.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core.data import list_names
from pidm_core.files import (
    BAD_DATA,
    UserError,
    encode_png,
    load_image,
    read_json,
    resized,
    sha256,
    write_bytes,
    write_json,
)
from pidm_core.image_names import named_pair
from pidm_core.keypoints import read_keypoints

IMAGES, SETS = 30, 30  # real, and as many generated, images; comparison sets
PIDM = "PIDM"
PAPER = {"G2R": 0.48, f"Jab {PIDM}": 0.56}  # Fig. 5, DeepFashion, 100 raters
MOST_METHODS = 9  # keys 1 to 9
_TEMPLATE = Path(__file__).parent / "assets" / "user_study" / "page.html"
_KINDS = ("real", "generated")
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Key:
    """What the ids of a page stand for; never shown to raters."""

    study: str
    """Hash of what the page shows."""
    images: dict[str, str]
    """Id of an image -> real or generated."""
    sets: dict[str, dict[str, str]]
    """Id of a set -> id of an image in it -> its method; empty when there is one method only."""
    files: dict[str, str]
    """Id of an image -> its file; id of a set -> its pair of source and target."""


@dataclass(frozen=True)
class Answers:
    """What one rater said."""

    study: str
    rater: str
    """Random, drawn by the page: tells files apart, and nobody's name."""
    images: dict[str, str]
    """Id -> real or generated, as judged."""
    sets: dict[str, str]
    """Id of a set -> id of the image chosen."""


@dataclass(frozen=True)
class Share:
    """A share (0-1), mean over raters, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """The three figures of the study; jab is empty when there was one method only."""

    raters: int
    r2g: Share
    g2r: Share
    jab: dict[str, Share]

    def text(self) -> str:
        """A table with the paper's figures, and how the intervals were made."""
        rows = {"R2G": self.r2g, "G2R": self.g2r}
        rows |= {f"Jab {method}": share for method, share in self.jab.items()}
        width = max(map(len, rows))
        lines = [f"{'':{width}}   share   95 % interval   paper (DeepFashion)"]
        for name, share in rows.items():
            interval = f"{share.low:6.1%} - {share.high:6.1%}"
            paper = f"{PAPER[name]:.0%}" if name in PAPER else "-"
            lines.append(f"{name:{width}}  {share.value:6.1%}  {interval:>15}   {paper}")
        how = (
            "Wilson's for one rater (over images)"
            if self.raters == 1
            else f"bootstrap over raters and images ({_RESAMPLES:,} draws of both; "
            "Wilson's over images where all answers agree)"
        )
        return "\n".join([*lines, f"raters: {self.raters}; intervals: {how}"])


# ---------------------------------------------------------------- images -> page and key


def build_study(
    real: Path,
    methods: Mapping[str, Path],
    *,
    sources: Path | None = None,
    truth: Path | None = None,
    keypoints: Path | None = None,
    seed: int = 0,
) -> tuple[str, Key]:
    """Draw the images of a study; returns the web page and its key.

    real: folder of real images; all images are shown in the size of the first one drawn, as PNG,
    so that neither size nor coding tells them apart. Market's junk and distractors are left out.
    methods: name -> folder of generated images, named as image_names says; the images judged real
    or generated are of the first. With two methods or more, sets are compared: then sources and
    truth are the folders of the source and the target images, and keypoints, if given, the file
    with the targets' poses. Raises UserError for folders that do not make a study.
    """
    if len(methods) > MOST_METHODS:
        raise UserError(f"{len(methods)} methods, at most {MOST_METHODS} fit on the keys 1 to 9")
    if len(methods) == 1 and (sources or truth or keypoints):
        raise UserError("--sources, --truth and --keypoints are for sets; --set NAME=DIR lacks")
    if len(methods) > 1 and not (sources and truth):
        raise UserError("comparing methods (--set) needs --sources and --truth")
    rng = np.random.default_rng(seed)
    made = {name: _images(folder) for name, folder in methods.items()}
    first, generated = next(iter(methods.values())), next(iter(made.values()))
    judged = [("real", path) for path in _draw(rng, _fair(_images(real)), IMAGES, real)]
    size = load_image(judged[0][1]).shape[:2]
    judged += [("generated", path) for path in _draw(rng, generated, IMAGES, first)]
    judged = [judged[place] for place in rng.permutation(len(judged))]
    compared = []
    if sources and truth and len(methods) > 1:
        _check_same_pairs(made, methods)
        folders = {sources: _images(sources), truth: _images(truth)}
        for path in _draw(rng, generated, SETS, first):
            source, target = _pair(path, sources, truth, folders)
            order = [list(made)[place] for place in rng.permutation(len(made))]
            compared.append(_Set(source, target, {name: made[name][path.stem] for name in order}))
    return _page_and_key(judged, compared, size, _poses(keypoints) if keypoints else None)


@dataclass(frozen=True)
class _Set:
    """Files of a comparison."""

    source: Path
    target: Path
    made: dict[str, Path]  # method -> its image, in the order shown


def _page_and_key(
    judged: Sequence[tuple[str, Path]],
    compared: Sequence[_Set],
    size: tuple[int, int],
    pose_of: Callable[[Path], np.ndarray] | None,
) -> tuple[str, Key]:
    def shown(image: np.ndarray | Path) -> str:
        return _data_uri(load_image(image) if isinstance(image, Path) else image, size)

    images = {f"image-{number:02d}": item for number, item in enumerate(judged, 1)}
    sets = {f"set-{number:02d}": item for number, item in enumerate(compared, 1)}
    choices = {
        name: {f"{name}-{number}": method for number, method in enumerate(item.made, 1)}
        for name, item in sets.items()
    }
    page = {
        "height": size[0],
        "width": size[1],
        "images": [{"id": name, "image": shown(path)} for name, (_, path) in images.items()],
        "sets": [
            {
                "id": name,
                "source": shown(item.source),
                "pose": shown(pose_of(item.target)) if pose_of else None,
                "truth": shown(item.target),
                "choices": [
                    {"id": choice, "image": shown(item.made[method])}
                    for choice, method in choices[name].items()
                ],
            }
            for name, item in sets.items()
        ],
    }
    study = sha256(json.dumps(page).encode())[:16]
    files = {name: path.name for name, (_, path) in images.items()}
    files |= {name: next(iter(item.made.values())).stem for name, item in sets.items()}
    key = Key(study, {name: kind for name, (kind, _) in images.items()}, choices, files)
    text = json.dumps({"study": study, **page})
    return _TEMPLATE.read_text("utf-8").replace("{{study}}", text), key


def write_study(page: str, key: Key, out: Path) -> Path:
    """Write the page to `out` and the key beside it; returns the key's path.

    Raises UserError if another study's key is there: without it its answers would be lost.
    """
    path = out.with_name(f"{out.stem}_key.json")
    if path.exists() and read_key(path).study != key.study:
        raise UserError(f"{path}: belongs to another study; move it, or give another --out")
    write_json(path, vars(key))
    write_bytes(out, page.encode())
    return path


def _images(folder: Path) -> dict[str, Path]:
    """The images of a folder by name without ending, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", BAD_DATA)
    names, _ = list_names(folder)
    return {Path(name).stem: folder / name for name in names}


def _fair(images: Mapping[str, Path]) -> dict[str, Path]:
    """Without Market's junk and distractors: cut badly or nobody, they look like bad drawings."""
    return {stem: path for stem, path in images.items() if not re.match(r"(-1|0000)_c\d", stem)}


def _draw(
    rng: np.random.Generator, images: Mapping[str, Path], count: int, folder: Path
) -> list[Path]:
    if len(images) < count:
        raise UserError(f"{folder}: {len(images)} images, the study needs {count}", BAD_DATA)
    paths = list(images.values())
    return [paths[place] for place in rng.choice(len(paths), count, replace=False)]


def _data_uri(image: np.ndarray, size: tuple[int, int]) -> str:
    if image.shape[:2] != size:
        image = resized(image, size)
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def _check_same_pairs(made: Mapping[str, Mapping[str, Path]], methods: Mapping[str, Path]) -> None:
    (_, wanted), *others = made.items()
    for name, images in others:
        if lacking := sorted(wanted.keys() - images.keys()):
            raise UserError(
                f"{methods[name]}: {len(lacking)} of the {len(wanted)} images to compare are not "
                f"in it, such as {lacking[0]}; every method must have made the same pairs",
                BAD_DATA,
            )


def _pair(
    path: Path, sources: Path, truth: Path, folders: Mapping[Path, Mapping[str, Path]]
) -> tuple[Path, Path]:
    """The files of the source and the target in the name of a generated image."""
    if pair := named_pair(path.stem, sources=folders[sources], targets=folders[truth]):
        return folders[sources][pair[0]], folders[truth][pair[1]]
    if halves := named_pair(path.stem, sources=folders[sources]):
        raise UserError(f"{path}: {halves[1]} is not in {truth}", BAD_DATA)
    if halves := named_pair(path.stem):
        raise UserError(f"{path}: {halves[0]} is not in {sources}", BAD_DATA)
    raise UserError(f"{path}: is not named <source>_2_<target>_vis", BAD_DATA)


def _poses(keypoints: Path) -> Callable[[Path], np.ndarray]:
    """Draws the pose of a target image, whose keypoints are px of that image: uint8 (H, W, 3)."""
    from pidm_core.pose import skeleton

    found = {Path(name).stem: points for name, points in read_keypoints(keypoints).items()}

    def drawing(target: Path) -> np.ndarray:
        if target.stem not in found:
            raise UserError(f"{keypoints}: no keypoints of {target.name}", BAD_DATA)
        return skeleton(found[target.stem], load_image(target).shape[:2])

    return drawing


# ---------------------------------------------------------------- answers -> shares


def read_key(path: Path) -> Key:
    """Read the key of a study; UserError (BAD_DATA) if it is none."""
    value = _fields(path, Key, "a study's key; give the _key.json beside the page")
    kinds, sets = list(value["images"].values()), list(value["sets"].values())
    methods = [sorted(s.values()) if _is_text(s) else [] for s in sets]
    if (
        not all(kind in kinds for kind in _KINDS)
        or not all(kind in _KINDS for kind in kinds)
        or not all(names and names == methods[0] for names in methods)
    ):
        raise UserError(f"{path}: damaged; give the key as the study was built", BAD_DATA)
    return Key(**value)


def read_answers(path: Path, key: Key) -> Answers:
    """Read one rater's answers; UserError (BAD_DATA) if they are not whole, or of another study."""
    answers = Answers(**_fields(path, Answers, "answers saved by a study's page"))
    if answers.study != key.study:
        raise UserError(
            f"{path}: answers to another study ({answers.study}, the key's is {key.study})",
            BAD_DATA,
        )
    allowed = {name: list(_KINDS) for name in key.images}
    allowed |= {name: list(choices) for name, choices in key.sets.items()}
    given = {**answers.images, **answers.sets}
    if lacking := [name for name in allowed if name not in given]:
        raise UserError(
            f"{path}: {len(lacking)} of {len(allowed)} questions are not answered, the first is "
            f"{lacking[0]}; finish in the page and save again",
            BAD_DATA,
        )
    for name, answer in given.items():
        if name not in allowed or answer not in allowed[name]:
            raise UserError(f"{path}: {name}: '{answer}' is not an answer to it", BAD_DATA)
    return answers


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _fields(path: Path, cls: type[Key] | type[Answers], what: str) -> dict[str, Any]:
    value = read_json(path)
    fields = cls.__dataclass_fields__
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise UserError(f"{path}: is not {what}", BAD_DATA)
    for name, field in fields.items():
        if not isinstance(value[name], str if field.type == "str" else dict):
            raise UserError(f"{path}: is not {what} ('{name}' is wrong)", BAD_DATA)
    return value


def score_study(key: Key, answers: Sequence[Answers]) -> Score:
    """R2G, G2R and Jab of at least one rater's answers; UserError if a rater stands twice."""
    raters = [a.rater for a in answers]
    if twice := [name for name in raters if raters.count(name) > 1]:
        raise UserError(f"rater {twice[0]}: two of the files are theirs; give one", BAD_DATA)

    def misjudged(kind: str) -> Share:
        names = [name for name, truth in key.images.items() if truth == kind]
        return share(np.array([[a.images[name] != kind for name in names] for a in answers]))

    chosen = np.array([[key.sets[name][a.sets[name]] for name in key.sets] for a in answers])
    methods = next(iter(key.sets.values())).values() if key.sets else ()
    return Score(
        raters=len(answers),
        r2g=misjudged("real"),
        g2r=misjudged("generated"),
        jab={method: share(chosen == method) for method in sorted(methods)},
    )


def share(said: np.ndarray) -> Share:
    """The share of True in bool (raters, images), with a 95 % interval.

    One rater: Wilson's interval over the images. Several: both the raters and the images are
    drawn anew (the pigeonhole bootstrap, Owen 2007), because the answers of one rater hang
    together and so do those to one image. Where all answers agree there is nothing to draw:
    Wilson's over the images again, as if there were one rater.
    """
    raters, images = said.shape
    if raters == 1 or said.all() or not said.any():
        from scipy.stats import binomtest  # type: ignore[import-untyped]

        hits = int(said[0].sum())
        interval = binomtest(hits, images).proportion_ci(method="wilson")
        return Share(hits / images, float(interval.low), float(interval.high))
    rng = np.random.default_rng(0)
    of_raters = rng.multinomial(raters, np.full(raters, 1 / raters), size=_RESAMPLES)  # (B, R)
    of_images = rng.multinomial(images, np.full(images, 1 / images), size=_RESAMPLES)  # (B, I)
    means = ((of_raters @ said) * of_images).sum(1) / said.size
    low, high = np.quantile(means, (0.025, 0.975))
    return Share(float(said.mean()), float(low), float(high))
