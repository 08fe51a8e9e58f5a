"""Ask people about generated images: `build` makes a web page, `score` counts what they said.

`build` needs the options below; `score --help` shows those of `score`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pidm_core import DONE, UserError, parse, quoted, run


@dataclass(frozen=True)
class Build:
    """What is asked about, and where the page goes."""

    real: str = ""
    """Folder of real images."""
    generated: str = ""
    """Folder of PIDM's images, named SOURCE_2_TARGET_vis.png."""
    set: tuple[str, ...] = ()
    """Other methods to compare, NAME=DIR, with the same file names; once for each method."""
    sources: str = ""
    """Folder of the source images, for the comparison."""
    truth: str = ""
    """Folder of the target images, for the comparison."""
    keypoints: str = ""
    """Keypoint file of the target images, to show the target poses too."""
    out: str = "study.html"
    """The page; its key goes beside it as study_key.json and is not for raters."""
    seed: int = 0
    """Seed of the choice of images and of their order."""
    dry_run: bool = False
    """Choose the images, say what the page would ask, and stop."""


@dataclass(frozen=True)
class Scoring:
    """Whose answers to which study."""

    key: str = "study_key.json"
    """The key that `build` wrote beside the page."""
    answers: tuple[str, ...] = ()
    """Files that raters saved from the page; may be given without the flag."""


def build(argv: list[str]) -> int:
    """Draw the images and write page and key."""
    example = "python tools/user_study.py build --real data/market1501/query --generated out/pidm"
    example += " --set GFLA=out/gfla --sources data/test --truth data/test --out study.html"
    options = parse(Build, argv, prog="user_study build", description=__doc__, example=example)
    if not options.real or not options.generated:
        raise UserError("build needs --real DIR and --generated DIR")
    if options.seed < 0:
        raise UserError(f"seed {options.seed} is negative")

    from pidm_core.user_study import IMAGES, PIDM, SETS, build_study, write_study

    methods = {PIDM: Path(options.generated)}
    for text in options.set:
        name, _, folder = text.partition("=")
        if not name or not folder or name in methods:
            raise UserError(f"set '{text}' is not NAME=DIR with a NAME of its own")
        methods[name] = Path(folder)
    sources, truth, keypoints = (
        Path(text) if text else None for text in (options.sources, options.truth, options.keypoints)
    )
    page, key = build_study(
        Path(options.real),
        methods,
        sources=sources,
        truth=truth,
        keypoints=keypoints,
        seed=options.seed,
    )
    compared = f"{SETS} sets of {', '.join(methods)}" if key.sets else "no sets (no --set NAME=DIR)"
    asked = f"{options.out}: {IMAGES} real and {IMAGES} generated images, {compared}"
    if options.dry_run:
        print(f"{asked}; nothing was written")
        return DONE
    path = write_study(page, key, Path(options.out))
    print(f"{asked}; for raters")
    print(f"{path}: what is what; not for raters. When answers are back:")
    print(f"  python tools/user_study.py score --key {quoted(path)} ANSWERS.json…")
    return DONE


def score(argv: list[str]) -> int:
    """Read the answers and print the figures."""
    example = "python tools/user_study.py score --key study_key.json answers-*.json"
    options = parse(
        Scoring, argv, prog="user_study score", description=__doc__, example=example, rest="answers"
    )
    if not options.answers:
        raise UserError(f"score needs the files that raters saved (example: {example})")

    from pidm_core.user_study import read_answers, read_key, score_study

    key = read_key(Path(options.key))
    print(score_study(key, [read_answers(Path(path), key) for path in options.answers]).text())
    return DONE


def main(argv: list[str] | None = None) -> int:
    """Build or score."""
    argv = sys.argv[1:] if argv is None else argv
    verb, *rest = argv or [""]
    if verb.startswith("-"):
        verb, rest = "build", argv
    if verb not in ("build", "score"):
        raise UserError(f"'{verb}' is neither build nor score (see user_study.py --help)")
    return (build if verb == "build" else score)(rest)


if __name__ == "__main__":
    run(main)
