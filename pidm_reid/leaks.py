"""The leak guard: what a generator has seen of a data set, by content and by identity."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pidm_core import BAD_DATA, Seen, UserError, content_key, read_seen
from pidm_reid import folder

_PERSON = re.compile(r"(\d+)_c\d")


@dataclass(frozen=True)
class Contents:
    """The images of a data set: content_key -> file name."""

    train: Mapping[str, str]
    test: Mapping[str, str]  # query and gallery, distractors among them

    def people(self) -> set[str]:
        """Identities of query and gallery, as they are written in the names."""
        return {pid for name in self.test.values() if int(pid := person(name)) > 0}


def read_contents(data: str | Path) -> Contents:
    """Hash a data set, with query and gallery if it has them."""
    records = folder.read_people(data)
    home = records[0].path.parent.parent
    tested = [s for s in (folder.QUERY, folder.GALLERY) if (home / s).is_dir()]
    test = [record for subset in tested for record in folder.read_people(data, subset)]
    train_keys, test_keys = ({content_key(r.path): r.name for r in x} for x in (records, test))
    return Contents(train_keys, test_keys)


def refuse_overlap(contents: Contents, data: str | Path) -> None:
    """UserError (BAD_DATA) if a test image is a training image as well, whatever its name."""
    if both := sorted(contents.train.keys() & contents.test.keys()):
        raise UserError(
            f"{data}: {len(both)} images are in the training set and in query or gallery, such as "
            f"{contents.train[both[0]]} and {contents.test[both[0]]}; a score on them says nothing",
            BAD_DATA,
        )


def generator_saw(
    model: str, contents: Contents, *, real: Collection[str], seen: Sequence[Seen] | None = None
) -> str:
    """What a generator was trained on, seen from a data set of which `real` are kept (D_tr).

    One of D_tr, all train, drawn people, external, unknown; that of the model it started from
    stands before its own, as in 'drawn people + D_tr'. Raises UserError (BAD_DATA) if it has
    seen an image of query or gallery, or a person of theirs in a data set of the same people.
    """
    seen = read_seen(model) if seen is None else seen
    if seen is None:
        return "unknown"
    labels = [_label(entry, contents, set(real), model) for entry in seen]
    return " + ".join(dict.fromkeys(labels))


def _label(entry: Seen, contents: Contents, real: set[str], model: str) -> str:
    keys = set(entry.images.values())
    if test := keys & contents.test.keys():
        raise UserError(
            f"{model}: was trained on {len(test)} images of query and gallery, such as "
            f"{contents.test[min(test)]}; what it generates may not be trained on",
            BAD_DATA,
        )
    shared = keys & contents.train.keys()
    if shared and (tested := {person(name) for name in entry.images} & contents.people()):
        raise UserError(
            f"{model}: was trained on {len(tested)} people of query and gallery, such as "
            f"{min(tested)}; what it generates may not be trained on",
            BAD_DATA,
        )
    if keys and shared == keys:
        names = {contents.train[key] for key in keys}
        return "D_tr" if names <= real else "all train"
    if entry.kind == "unknown":
        return "unknown"
    return "drawn people" if entry.kind == "drawn" else "external"


def person(name: str) -> str:
    """The identity in a name such as 0002_c1s1_000451_03.jpg; '-1' if there is none."""
    match = _PERSON.match(name)
    return match[1] if match else "-1"
