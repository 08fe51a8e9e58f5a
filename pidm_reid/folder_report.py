"""An augmented folder as one HTML page with plots and pictures.

What a page could show but finds nothing about is named in a sentence; names and JSON values from
outside are only ever text.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pidm_core import (
    BAD_DATA,
    IMAGE_SUFFIXES,
    NOBODY,
    Record,
    UserError,
    find_keypoints,
    load_image,
    read_json,
    read_keypoints,
    read_market1501,
    rescale,
    sha256,
    skeleton,
    write_bytes,
)
from pidm_reid import cameras, coverage, folder, page, plan
from pidm_reid.page import escape, paragraph
from pidm_reid.table import (
    Grid,
)

SHOWN_KEPT, SHOWN_DROPPED, SHOWN_DUPLICATES = 24, 12, 10


@dataclass(frozen=True)
class _Contents:
    """What an augmented folder holds, as far as it is there."""

    split: Mapping[str, Any]
    files: Mapping[str, Record]  # training images that are there, real and generated
    real: Sequence[str]
    kept: Sequence[str]  # generated images that are trained on
    dropped: Sequence[str]
    recipes: Mapping[str, Mapping[str, Any]]  # by the name of the generated image
    selection: Mapping[str, Mapping[str, Any]]  # the same; empty without selection.jsonl
    keypoints: Mapping[str, np.ndarray]
    found: Mapping[str, np.ndarray]  # joints that somebody estimated in generated images, px


def write_folder_report(
    augmented: Path,
    *,
    keypoints: Path | None = None,
    found: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write report.html into an augmented folder; returns its path.

    keypoints: file of the real images' joints (default: the one beside the data set).
    found: name of a generated image -> its joints (18, 2) px as estimated, to be compared with
    those asked for.
    Raises UserError (BAD_DATA) if it is no augmented folder, or one made for evaluation.
    """
    contents = _read(augmented, keypoints, found or {})
    sections = {
        "Images": _images(contents),
        "Identity": _similarities(contents, _among_real(augmented)),
        "Joints": _joints(contents),
        "Duplicates": _duplicates(contents),
        "Before and after": _balance(contents),
        "Orientation": _orientations(contents),
    }
    body = _summary(contents) + "".join(f"<h2>{k}</h2>\n{v}" for k, v in sections.items())
    path = augmented / page.REPORT
    write_bytes(path, page.page(f"Folder {augmented.resolve().name}", body))
    return path


def is_augmented(path: Path) -> bool:
    """Whether `write_folder_report` is the report for a folder."""
    return (path / folder.SPLIT).is_file()


def _read(root: Path, keypoints: Path | None, found: Mapping[str, np.ndarray]) -> _Contents:
    augmented = folder.read_augmented(root, verify=False)
    homes = (_candidates(augmented), root)
    files = {record.name: record for home in homes for record in read_market1501(home)}
    recipes: dict[str, dict[str, Any]] = {}
    for home in homes:
        recipes |= folder.read_lines(home / folder.PLAN)
        recipes |= folder.read_ledger(home / folder.MANIFEST)
    selection = folder.read_lines(root / folder.SELECTION)
    out = {name for name, entry in selection.items() if not entry.get("kept")}
    return _Contents(
        split=augmented.split,
        files=files,
        real=[name for name in augmented.real if name in files],
        kept=[name for name in augmented.synthetic if name in files],
        dropped=sorted(out),
        recipes=recipes,
        selection=selection,
        keypoints=read_keypoints(keypoints) if keypoints else _beside(augmented),
        found=found,
    )


def _candidates(augmented: folder.Augmented) -> Path:
    """The folder that a selection was made from: what is kept links there, what is dropped lies."""
    for name in augmented.synthetic[:1]:
        origin = (augmented.train_folder / name).resolve().parent.parent.parent
        if is_augmented(origin):
            return origin
    return augmented.root


def _beside(augmented: folder.Augmented) -> dict[str, np.ndarray]:
    """Joints from beside the data set that the real images link to, {} if there are none."""
    try:
        first = augmented.train_folder / augmented.real[0]
        return read_keypoints(find_keypoints(first.resolve().parent.parent))
    except (UserError, IndexError):
        return {}


def _summary(contents: _Contents) -> str:
    split = contents.split
    real, kept = len(contents.real), len(contents.kept)
    people = len({contents.files[name].pid for name in contents.real})
    text = f"{count(real, 'real image')} of {count(people, 'person', 'people')}"
    if isinstance(split.get("ratio"), int | float) and isinstance(split.get("full_images"), int):
        text += f" ({plan.per_cent(split['ratio'])} of {split['full_images']:,})"
    text += f", {count(kept, 'generated image')} beside them. "
    text += f"The generator saw: {split.get('generator_saw', 'unknown')}."
    shown = {key: value for key, value in split.items() if key != "real"}
    return paragraph(text) + paragraph(_selected(contents)) + page.details("split.json", shown)


def _selected(contents: _Contents) -> str:
    """What was kept and dropped, in words."""
    if not contents.selection:
        return f"Nothing was selected (no {folder.SELECTION}): every generated image is trained on."
    reasons = Counter(str(contents.selection[name].get("reason")) for name in contents.dropped)
    kept = len(contents.selection) - len(contents.dropped)
    why = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
    return (
        f"Of {count(len(contents.selection), 'candidate')} {kept:,} were kept and "
        f"{len(contents.dropped):,} dropped{': ' if why else ''}{why}."
    )


def count(number: int, one: str, many: str = "") -> str:
    """'1 image', '12,936 images'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


# ---------------------------------------------------------------- pictures


def _images(contents: _Contents) -> str:
    if not (contents.kept or contents.dropped):
        return paragraph("There is no generated image.")
    parts = []
    for names, limit, kind in (
        (contents.kept, SHOWN_KEPT, "kept"),
        (contents.dropped, SHOWN_DROPPED, "dropped"),
    ):
        chosen = evenly(names, limit)
        if chosen:
            some = (
                f", {len(chosen)} of them evenly chosen by name" if len(chosen) < len(names) else ""
            )
            parts.append(paragraph(f"{count(len(names), 'image')} {kind}{some}:"))
            cards = "".join(_card(contents, name) for name in chosen)
            parts.append(f'<div class="cards">\n{cards}</div>\n')
    lacking = []
    if not contents.keypoints:
        lacking.append("poses (no keypoint file that can be read lies beside the data set)")
    if not contents.selection:
        lacking.append(f"nearest real images and similarities (no {folder.SELECTION})")
    if lacking:
        parts.append(paragraph(f"Not shown: {', '.join(lacking)}."))
    return "".join(parts)


def evenly(names: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of the names, the first and the last among them."""
    places = np.linspace(0, len(names) - 1, min(limit, len(names))).astype(int)
    return [names[k] for k in places]


def _card(contents: _Contents, name: str) -> str:
    recipe, chosen = contents.recipes.get(name, {}), contents.selection.get(name, {})
    source = str(recipe.get("source") or _source_of(name, contents.files))
    figures = [
        _figure("source", _photo(contents, source)),
        _figure("pose", _pose(contents, _asked(contents, name), source)),
        _figure("generated", _photo(contents, name)),
    ]
    if "nearest" in chosen:
        figures.append(_figure("nearest real", _photo(contents, str(chosen["nearest"]))))
    dropped = name in contents.dropped
    strip = f'<div class="strip">{"".join(figures)}</div>'
    verdict = ""
    if dropped:
        verdict = f"<strong>dropped: {escape(chosen.get('reason') or 'no reason given')}</strong>; "
    facts = f"<p>{verdict}{escape('; '.join(_facts(contents, name)))}</p>"
    kind = "card dropped" if dropped else "card"
    return f'<div class="{kind}">{strip}{facts}<p class="soft">{escape(name)}</p></div>\n'


def _source_of(name: str, files: Mapping[str, Record]) -> str:
    """The source in the name of an image without a recipe: <source stem>_pidm0007.jpg."""
    stem = name.rpartition("_pidm")[0]
    return next((f"{stem}{end}" for end in IMAGE_SUFFIXES if stem + end in files), "")


def _facts(contents: _Contents, name: str) -> list[str]:
    record, chosen = contents.files.get(name), contents.selection.get(name, {})
    facts = [f"person {record.pid}, camera {record.camid}"] if record else []
    for key, what in (("own", "own person"), ("other", "another person"), ("source", "source")):
        if (similarity := _number(chosen.get(key))) is not None:
            facts.append(f"{what} {similarity:.2f}")
    if (error := _joint_error(contents, name)) is not None:
        facts.append(f"joints {error:.1f} px off")
    return facts


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _figure(title: str, shown: str) -> str:
    return f"<figure>{shown}<figcaption>{escape(title)}</figcaption></figure>"


def _photo(contents: _Contents, name: str) -> str:
    if name not in contents.files:  # only files of this folder, whatever a line names
        return '<p class="soft nothing">not in this folder</p>'
    try:
        return page.picture(load_image(contents.files[name].path), alt=name)
    except UserError:
        return '<p class="soft nothing">not readable</p>'


def _asked(contents: _Contents, name: str) -> str:
    """The pose asked for; an imported image names it without the ending."""
    pose = str(contents.recipes.get(name, {}).get("pose", ""))
    return next((n for n in folder.spellings(pose) if n in contents.keypoints), pose)


def _pose(contents: _Contents, pose: str, source: str) -> str:
    """The joints asked for, in the frame of their image; that of the source for external ones."""
    frame = contents.files.get(pose) or contents.files.get(source)
    if pose not in contents.keypoints or frame is None:
        return '<p class="soft nothing">unknown</p>'
    try:
        size = load_image(frame.path).shape[:2]
    except UserError:
        return '<p class="soft nothing">not readable</p>'
    return page.picture(
        skeleton(contents.keypoints[pose], size), alt=f"joints of {pose}", drawn=True
    )


# ---------------------------------------------------------------- figures of a folder


def _among_real(root: Path) -> list[float]:
    """Of each real image the similarity to the nearest of its person; [] if nobody measured it."""
    path = root / folder.AMONG_REAL
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: not names with similarities; select the images anew", BAD_DATA)
    return [x for value in values.values() if (x := _number(value)) is not None]


def _similarities(contents: _Contents, real: Sequence[float]) -> str:
    """Distance of the kept images to the nearest training image, against that among real ones."""
    known = [
        [_number(contents.selection.get(name, {}).get(key)) for key in ("own", "other", "source")]
        for name in contents.kept
    ]
    nearest = [1 - max(there) for row in known if (there := [x for x in row if x is not None])]
    if not nearest:
        return paragraph(f"Similarities are not known (no {folder.SELECTION}).")
    sets = {"generated to the nearest training image": nearest}
    if real:
        sets["real to the nearest of the same person"] = [1 - value for value in real]
    text = "; ".join(f"{name}: {statistics.median(v):.3f}" for name, v in sets.items())
    note = "" if len(sets) > 1 else " Similarities among the real images are not known."
    return paragraph(f"Distance (1 - cosine similarity), median: {text}.{note}") + page.histogram(
        sets,
        x="distance, 1 - cosine similarity",
        y="share of the images",
        alt="Distances of generated and real images to the nearest training image",
    )


def _joints(contents: _Contents) -> str:
    """How far the joints of the kept images are from those asked for."""
    errors = [e for name in contents.kept if (e := _joint_error(contents, name)) is not None]
    if contents.found and not errors:
        return paragraph("None of the joints found can be compared with joints asked for.")
    if not errors:
        return paragraph(
            "Not known: estimate them with tools/extract_poses.py and give --found FILE."
        )
    text = f"Mean distance of the joints asked for from those found, {count(len(errors), 'image')}"
    share = f"{statistics.median(errors):.1f} px at the median"
    most = f"{float(np.quantile(errors, 0.9)):.1f} px or less in nine of ten"
    return paragraph(f"{text}: {share}, {most}.")


def _joint_error(contents: _Contents, name: str) -> float | None:
    """Mean distance in px of the image, over the joints that are known of both."""
    pose = _asked(contents, name)
    source = str(contents.recipes.get(name, {}).get("source", ""))
    frame = contents.files.get(pose) or contents.files.get(source)
    if name not in contents.found or pose not in contents.keypoints or frame is None:
        return None
    try:
        sizes = [load_image(path).shape[:2] for path in (frame.path, contents.files[name].path)]
    except (UserError, KeyError):
        return None
    asked = rescale(contents.keypoints[pose], *sizes)
    distances = np.linalg.norm(asked - contents.found[name], axis=1)
    known = distances[~np.isnan(distances)]
    return float(known.mean()) if len(known) else None


def _duplicates(contents: _Contents) -> str:
    """Generated images whose files are equal, to each other or to a real one."""
    hashes: dict[str, list[str]] = defaultdict(list)
    for name in contents.kept:
        hashes[sha256(contents.files[name].path)].append(name)
    real = {sha256(contents.files[name].path): name for name in contents.real}
    twins = [names for names in hashes.values() if len(names) > 1]
    copies = [[*names, real[key]] for key, names in hashes.items() if key in real]
    extra = sum(len(names) - 1 for names in twins)
    text = f"{count(extra, 'generated image')} equal to another generated one; "
    text += (
        f"{count(sum(len(names) - 1 for names in copies), 'generated image')} equal to a real one."
    )
    shown = [" = ".join(names) for names in [*copies, *twins]][:SHOWN_DUPLICATES]
    items = "".join(f"<li>{escape(line)}</li>" for line in shown)
    return paragraph(text) + (f"<ul>{items}</ul>\n" if items else "")


def _balance(contents: _Contents) -> str:
    """Images per person and per camera, of the real images alone and with the generated ones."""

    def by(names: Iterable[str], key: Callable[[Record], int]) -> Counter[int]:
        return Counter(key(contents.files[name]) for name in names)

    def row(title: str, names: Sequence[str]) -> tuple[str, ...]:
        people = sorted(by(names, lambda record: record.pid).values()) or [0]
        middle = f"{statistics.median(people):g}"
        return title, f"{len(names):,}", str(people[0]), middle, str(people[-1])

    after = [*contents.real, *contents.kept]
    people = Grid(
        "Per person",
        "",
        ("", "images", "fewest of a person", "median", "most"),
        (row("real", contents.real), row("real and generated", after)),
    )
    before, added = (by(names, lambda r: r.camid) for names in (contents.real, contents.kept))
    by_camera = Grid(
        "Per camera",
        "A generated image counts for the camera of its source.",
        ("camera", "real", "generated", "together"),
        tuple(
            (f"c{c}", f"{before[c]:,}", f"{added[c]:,}", f"{before[c] + added[c]:,}")
            for c in sorted({*before, *added})
        ),
    )
    return page.table(people) + page.table(by_camera) + paragraph(_confirmed(contents))


def _confirmed(contents: _Contents) -> str:
    real, generated = (
        [contents.files[name] for name in names] for names in (contents.real, contents.kept)
    )
    try:
        shares = cameras.confirmed(real, generated)
    except UserError as error:
        return f"Whether they look like that camera's is not known ({error})."
    if not shares:
        return "Whether they look like that camera's is not known."
    return (
        f"A classifier that has not seen the person names this camera for {shares[1]:.0%} of the "
        f"generated images, and for {shares[0]:.0%} of the real ones."
    )


def _orientations(contents: _Contents) -> str:
    """Where people face: real images by their joints, generated ones by those asked for."""
    if not contents.keypoints:
        return paragraph("Not known: no keypoint file that can be read lies beside the data set.")

    def facing(poses: Iterable[str]) -> Counter[str]:
        joints = [contents.keypoints.get(pose, NOBODY) for pose in poses]
        return Counter(coverage.facing(np.array(joints).reshape(-1, 18, 2)))

    real = facing(contents.real)
    asked = facing(_asked(contents, name) for name in contents.kept)
    together = real + asked

    def share(counts: Counter[str], where: str) -> str:
        return f"{counts[where]:,} ({counts[where] / max(1, counts.total()):.0%})"

    return page.table(
        Grid(
            "Orientation",
            "Left and right are the image's. Generated images count by the pose asked for.",
            ("faces", "real", "generated", "together"),
            tuple(
                (where, *(share(counts, where) for counts in (real, asked, together)))
                for where in (*coverage.VIEWS, "unknown")
            ),
        )
    )
