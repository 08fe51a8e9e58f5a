"""Names of generated images: the source and the target that an image was made from.

`<source>_2_<target>_vis.png` (PIDM, GFLA, NTED), `<source>.jpg___<target>.jpg_vis.jpg` (PATN),
`<source>_to_<target>.png` (PCDMs). What follows the last `_vis` tells several images of one source
and target apart (seeds). Names are taken without the ending of the file.
"""

from __future__ import annotations

import re
from collections.abc import Container

_SEPARATORS = ("_2_", "___", "_to_")
_VIS = re.compile(r"(.*)_vis(?![A-Za-z])")  # the last one, but not that of `_visit`
_ENDING = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)


def without_seed(name: str) -> str:
    """The name up to its last `_vis`: equal for images that differ in the seed alone."""
    match = _VIS.match(name)
    return match[1] if match else name


def named_pair(
    name: str, *, sources: Container[str] | None = None, targets: Container[str] | None = None
) -> tuple[str, str] | None:
    """Source and target in a name, both without ending; None if it tells none that are known.

    sources, targets: the names that are known; None = any. Since a source or a target may itself
    hold a separator, it is the last place with a known name on either side that counts.
    """
    words = without_seed(name)
    for separator in _SEPARATORS:
        head = words
        while separator in head:
            head = head.rpartition(separator)[0]
            source = _known(head, sources)
            target = _known(words[len(head) + len(separator) :], targets)
            if source is not None and target is not None:
                return source, target
    return None


def _known(part: str, names: Container[str] | None) -> str | None:
    """The known name that a part stands for; some of Market-1501's end in `.jpg.jpg`."""
    bare = _ENDING.sub("", part)
    if names is None:
        return bare
    return next((name for name in (part, bare) if name in names), None)
