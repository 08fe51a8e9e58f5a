"""Seeded mutations of valid files, read in this process: a UserError or a correct read, no more."""

from __future__ import annotations

import copy
import json
import logging
import random
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from faults import read
from faults.cases import images, lists, weights
from faults.harness import Measure, Row
from pidm_core import UserError, read_json, sha256, write_json

HANGS_S = 10
TOKENS = (
    "NaN", "Infinity", "1e400", "-1", "0", "9" * 400, "null", "true", '"x"', "[]", "{}", "[[[[",
    "}", ",", ":", "\0", "\n", "\r", "\t", "\u2028", "\ufeff", "\ud7ff", "\\ud800", "\\", '"', "'",
    "../../x", "/etc/passwd", "C:\\x", "!!python/name:os.system ", "&a *a", "<<: ", "? [", "%s", "",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 10**30, "", "x", "../x", "\ud800", [], {}, [[]], {"": None}, 0.5,
)  # fmt: skip
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "keypoints": lists.FLAT[:51], "score": 0.5}],
}
RESULT = {
    "row": "Standard", "ratio": 0.2, "seed": 0, "mAP": 0.5, "mINP": 0.2, "cmc": {"1": 0.5},
    "by_person": {"1": [2, 0.5]}, "counts": {"queries": 2}, "left_out": [], "configuration": {},
}  # fmt: skip
YAML = (
    "data: people\nmodel:\n  size: [128, 64]\n  channel_mults: [1, 2]\n  texture_factors: [1, 2]\n"
    'train:\n  lr: 1e-4  # slow\n  cosine: true\n  init: "a b"\nsample: {sampler: ddim, steps: 5}\n'
)


def _folder(file: str) -> Callable[[Path], str]:
    """Write an augmented folder whose `file` is going to be mutated; its path."""

    def make(home: Path) -> str:
        choice = json.dumps({"file_name": lists.MADE, "kept": True}) + "\n"
        lists.augmented_folder(selection_jsonl=choice)(home)
        return file

    return make


def _file(name: str, content: str | bytes) -> Callable[[Path], str]:
    def make(home: Path) -> str:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return make


def _pairs(name: str, content: str) -> Callable[[Path], str]:
    def make(home: Path) -> str:
        for path, data in {**lists.MARKET, **lists.POSES}.items():
            _file(path, data)(home)
        return _file(name, content)(home)

    return make


# kind -> what makes the valid file, and what reads it (with the path of its folder)
Kinds = dict[str, tuple[Callable[[Path], str], Callable[[Path], object]]]
SAME = f"{lists.SAME}\n"
TEXTS: Kinds = {
    "settings": (_file("c.yaml", YAML), lambda home: read.settings(f"{home}/c.yaml")),
    "keypoint CSV": (
        _file("k.csv", lists.csv({f"{k}.jpg": lists.person(k) for k in range(3)})),
        lambda home: read.joints(f"{home}/k.csv"),
    ),
    "OpenPose": (
        _file("a.json", json.dumps(lists.openpose(lists.FLAT, lists.FLAT))),
        lambda home: read.joints(f"{home}/a.json"),
    ),
    "COCO": (_file("a.json", json.dumps(COCO)), lambda home: read.joints(f"{home}/a.json")),
    "COCO results": (
        _file("a.json", json.dumps([lists.COCO])), lambda home: read.joints(f"{home}/a.json"),
    ),
    "keypoint text": (_file("a.txt", "1 2\n" * 18), lambda home: read.joints(f"{home}/a.txt")),
    "pairs CSV": (
        _pairs("p.csv", f"from,to\n{SAME}"),
        lambda home: read.people(f"{home}", f"{home}/k.csv", f"{home}/p.csv"),
    ),
    "pairs text": (_file("p.txt", SAME * 3), lambda home: read.pairs(f"{home}/p.txt")),
    "pairs JSON": (
        _file("p.json", json.dumps([{"source_image": "a.jpg", "target_image": "b.jpg"}] * 2)),
        lambda home: read.pairs(f"{home}/p.json"),
    ),
    "split.json": (_folder("split.json"), lambda home: read.augmented(f"{home}")),
    "ledger": (_folder("manifest.jsonl"), lambda home: read.augmented(f"{home}")),
    "selection": (_folder("selection.jsonl"), lambda home: read.augmented(f"{home}")),
    "seen.json": (
        _file("seen.json", json.dumps([{"data": "x", "kind": "real", "images": {"a": "b"}}])),
        lambda home: read.seen(f"{home}"),
    ),
    "result.json": (
        _file("row/result.json", json.dumps(RESULT)), lambda home: read.results(f"{home}"),
    ),
}  # fmt: skip


def _picture(name: str) -> tuple[Callable[[Path], str], Callable[[Path], object]]:
    data = (images.REFUSED | images.GREYS).get(name, (b"",))[0]
    return _file("a.jpg", data), lambda home: read.image(f"{home}/a.jpg")


def _model(file: str) -> Callable[[Path], str]:
    def make(home: Path) -> str:
        weights.write_model(home / "m")
        return f"m/{file}"

    return make


def _signed_model(home: Path) -> str:
    """Read the model after its hash was made to fit, so that more than the hash is tested."""
    config = read_json(home / "m/config.json")
    digest = sha256(home / "m/model.safetensors")
    write_json(home / "m/config.json", config | {"weights_sha256": digest})
    return read.model(f"{home}/m")


def _run(home: Path) -> str:
    weights.write_run(home)
    return "checkpoints/step_00000010/manifest.json"


SMALL = images.NOISE[:16, :16]
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
BINARIES: Kinds = {
    **{
        f"{kind} image": (
            _file("a.jpg", images.saved(images.Image.fromarray(SMALL), kind, **options)),
            lambda home: read.image(f"{home}/a.jpg"),
        )
        for kind, options in (
            ("JPEG", {"exif": b"Exif\0\0" + EXIF}), ("PNG", {"exif": EXIF}), ("WEBP", {}),
            ("GIF", {}), ("BMP", {}), ("TIFF", {}),
        )
    },
    "16-bit image": _picture("16 bits, middle grey"),
    "palette image": _picture("palette, its colour transparent"),
    "heat map": (
        _file("a.npy", lists.npy(lists.np.random.default_rng(0).random((4, 4, 18)))),
        lambda home: read.joints(f"{home}/a.npy"),
    ),
    "safetensors": (
        _file("w.safetensors", safetensors.torch.save(weights.STATE)),
        lambda home: read.weights(f"{home}/w.safetensors"),
    ),
    "torch file": (
        _file("w.pth", weights.saved(weights.STATE)), lambda home: read.weights(f"{home}/w.pth"),
    ),
    "old torch file": (
        _file("w.pth", weights.saved(weights.STATE, _use_new_zipfile_serialization=False)),
        lambda home: read.weights(f"{home}/w.pth"),
    ),
    "authors' checkpoint": (
        _file("last.pt", weights.saved({"ema": weights.STATE})),
        lambda home: read.official(f"{home}/last.pt"),
    ),
    "config.json": (_model("config.json"), lambda home: read.model(f"{home}/m")),
    "model weights": (_model("model.safetensors"), _signed_model),
    "checkpoint manifest": (_run, lambda home: read.checkpoint(f"{home}")),
}  # fmt: skip


# ---------------------------------------------------------------- mutations


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data after one to four mutations; the same for the same state of `rng`."""
    if rng.random() < 0.3 and (tree := _tree(data)) is not None:
        for _ in range(rng.randint(1, 3)):
            tree = _grown(tree, rng)
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    for _ in range(rng.randint(1, 4)):
        data = rng.choice((_flip, _cut, _splice, _token, _token, _lines))(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first] if rng.random() < 0.5 else data[:first] + data[last:]


def _splice(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[first : min(last, first + 4000)] + data[place:]


def _token(data: bytes, rng: random.Random) -> bytes:
    """One word of the file replaced by something odd, or that put in somewhere."""
    place = rng.randrange(len(data) + 1)
    end = place
    while rng.random() < 0.8 and end < len(data) and data[end : end + 1].isalnum():
        end += 1
    return data[:place] + rng.choice(TOKENS).encode() + data[end:]


def _lines(data: bytes, rng: random.Random) -> bytes:
    rows = data.split(b"\n")
    k, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    rows[k], rows[other] = rows[other], rows[k]
    return b"\n".join([*rows[:k], rows[other], *rows[k:]])


def _tree(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _grown(tree: Any, rng: random.Random) -> Any:
    """A JSON value with one part of it replaced, removed, renamed or repeated."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return copy.deepcopy(rng.choice(VALUES))
    key: Any = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
    act = rng.random()
    if act < 0.6:
        tree[key] = _grown(tree[key], rng)
    elif act < 0.8:
        del tree[key]
    elif isinstance(tree, dict):
        tree[f"{key}x" if act < 0.9 else rng.choice(TOKENS)] = tree.pop(key)
    else:
        tree.append(copy.deepcopy(tree[key]))
    return tree


# ---------------------------------------------------------------- reading


class Hangs(BaseException):
    """The guard's alarm."""


def attempt(read_it: Callable[[Path], object], home: Path) -> str:
    """What is wrong with how a file is read; '' = nothing."""

    def alarm(*_: object) -> None:
        raise Hangs

    old = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, HANGS_S)
    try:
        read_it(home)
    except UserError:
        pass
    except Hangs:
        return "hangs"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    return ""


def mutate(kinds: Kinds, number: int, what: str) -> Row:
    """Read so many mutants, as many of each kind."""
    row = Row(what, "read, or refused with one line: 0 other exceptions, 0 hangs")
    each = -(-number // len(kinds))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="mutants-") as name:
        warnings.simplefilter("error")
        logging.disable(logging.WARNING)  # what was passed over in a run folder
        try:
            for kind, (make, read_it) in kinds.items():
                home = Path(name) / str(len(list(Path(name).iterdir())))
                home.mkdir()
                path = home / make(home)
                valid, beside = path.read_bytes(), _contents(home, path)
                assert not attempt(read_it, home), f"{kind}: the valid file is not read"
                for k in range(each):
                    path.write_bytes(mutated(valid, random.Random(f"{kind} {k}")))
                    said = attempt(read_it, home)
                    row.check(not said, f"{kind} {k}: {said}")
                    for other, content in beside:
                        other.write_bytes(content)
        finally:
            logging.disable(logging.NOTSET)
    return row


def _contents(home: Path, path: Path) -> Sequence[tuple[Path, bytes]]:
    """Small files beside that reading may change: the hash in a model's config.json."""
    found = [p for p in home.rglob("config.json") if p != path]
    return [(p, p.read_bytes()) for p in found]


def texts(number: int) -> Row:
    """500 N mutants of configurations, keypoint files, pair lists, splits and ledgers."""
    return mutate(TEXTS, 500 * number, "mutants of settings, keypoints, pairs, ledgers")


def binaries(number: int) -> Row:
    """50 N mutants of images, weights, models and checkpoints."""
    return mutate(BINARIES, 50 * number, "mutants of images, weights, models, checkpoints")


# ---------------------------------------------------------------- misspelt keys


def typos(number: int) -> Row:
    """10 N misspelt keys of configurations: refused, and the right key is suggested."""
    from pidm_core.config import PIDMConfig
    from pidm_core.options import from_dict, to_dict
    from pidm_reid.config import ReidTable

    row = Row("misspelt keys of configurations", "all refused, the right key suggested in 95 %")
    rng, suggested = random.Random(0), 0
    kinds = [(cls, list(_keys(to_dict(cls())))) for cls in (PIDMConfig, ReidTable)]
    for _ in range(10 * number):
        cls, keys = rng.choice(kinds)
        *sections, key = rng.choice(keys)
        wrong = _misspelt(key, rng)
        if any(wrong == other[-1] and other[:-1] == tuple(sections) for other in keys):
            wrong += "x"
        tree: Any = {wrong: "1"}
        for section in reversed(sections):
            tree = {section: tree}
        try:
            from_dict(cls, tree)
            row.check(False, f"{wrong} was taken")
        except UserError as error:
            row.check(f"unknown key '{wrong}'" in str(error), str(error))
            suggested += f"did you mean '{key}'" in str(error)
    row.what += f" ({suggested} of {row.times} right)"
    if suggested < 0.95 * row.times:
        row.wrong.append(f"the right key was suggested in {suggested} of {row.times}")
    return row


def _keys(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Any:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _keys(value, (*above, key))


def _misspelt(key: str, rng: random.Random) -> str:
    """A letter dropped, doubled, exchanged with the next or with a neighbour on the keyboard."""
    k = rng.randrange(max(1, len(key) - 1))
    return rng.choice(
        (
            key[:k] + key[k + 1 :] if len(key) > 2 else key + key[-1],
            key[: k + 1] + key[k:],
            key[:k] + key[k + 1 : k + 2] + key[k] + key[k + 2 :],
            key[:k] + chr(ord("a") + (ord(key[k]) + 1) % 26) + key[k + 1 :],
            key.replace("_", "-") if "_" in key else key + "s",
        )
    )


MEASURES: tuple[Measure, ...] = (texts, binaries, typos)
