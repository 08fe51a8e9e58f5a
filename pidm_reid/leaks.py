"""The leak guard: what a generator has seen of a data set, by content and by identity."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pidm_core import (
    BAD_DATA,
    Seen,
    UserError,
    content_key,
    has_market1501,
    read_market1501,
    read_seen,
)
from pidm_reid import folder


@dataclass(frozen=True)
class Contents:
    """The images of a data set: file name -> content_key."""

    train: Mapping[str, str]
    test: Mapping[str, str]  # query and gallery, with junk and distractors; names with the folder

    def named(self) -> dict[str, str]:
        """content_key -> a name of that image."""
        return {key: name for part in (self.train, self.test) for name, key in part.items()}

    def tested(self) -> set[int]:
        """Identities of query and gallery."""
        return {pid for name in self.test if (pid := folder.person(name)[0]) > 0}


def read_contents(data: str | Path) -> Contents:
    """Hash a data set, with query and gallery if it has them."""
    train = {record.name: content_key(record.path) for record in folder.read_people(data)}
    test = {
        f"{subset}/{record.name}": content_key(record.path)
        for subset in (folder.QUERY, folder.GALLERY)
        if has_market1501(data, subset)
        for record in read_market1501(data, subset)
    }
    return Contents(train, test)


def refuse_overlap(contents: Contents, data: str | Path) -> None:
    """UserError (BAD_DATA) if a test image is a training image as well, whatever its name."""
    keys = set(contents.train.values())
    if both := sorted(name for name, key in contents.test.items() if key in keys):
        raise UserError(
            f"{data}: {len(both)} images of query and gallery are in the training set as well, "
            f"such as {both[0]}; a score on them says nothing",
            BAD_DATA,
        )


def generator_saw(
    model: str, contents: Contents, *, real: Collection[str], seen: Sequence[Seen] | None = None
) -> str:
    """What a generator was trained on, seen from a data set of which `real` are kept (D_tr).

    D_tr, all train, drawn people, external, unknown, or several of them; that of the model it
    started from stands before its own, as in 'drawn people + D_tr'. Raises UserError (BAD_DATA)
    if it has seen an image of query or gallery, or a person of theirs in a data set of the same
    people: one that has an image of the training set, or mostly the same names (a resized copy).
    """
    seen = read_seen(model) if seen is None else seen
    if seen is None:
        return "unknown"
    labels = [label for entry in seen for label in _labels(entry, contents, real, model)]
    return " + ".join(dict.fromkeys(labels))


def _labels(entry: Seen, contents: Contents, real: Collection[str], model: str) -> list[str]:
    keys = set(entry.images.values())
    if test := sorted(name for name, key in contents.test.items() if key in keys):
        raise _tested(model, f"{len(test)} images", test[0])
    train = set(contents.train.values())
    names = entry.images.keys() & {*contents.train, *(Path(n).name for n in contents.test)}
    most = max(len(entry.images), len(contents.train)) / 2
    resized = entry.kind == "real" and len(names) > most  # or stored anew
    if (keys & train or resized) and (both := _people(entry) & contents.tested()):
        raise _tested(model, f"{len(both)} people", min(both))
    kinds = {"drawn": "drawn people", "unknown": "unknown"}
    labels = [kinds.get(entry.kind, "external")] if not keys or keys - train else []
    if inside := keys & train:
        kept = {contents.train[name] for name in real}
        labels.append("D_tr" if inside <= kept else "all train")
    return labels


def _tested(model: str, what: str, example: object) -> UserError:
    return UserError(
        f"{model}: was trained on {what} of query and gallery, such as {example}; what it "
        "generates may not be trained on",
        BAD_DATA,
    )


def _people(entry: Seen) -> set[int]:
    return {folder.person(name)[0] for name in entry.images if folder.PERSON.search(name)}
