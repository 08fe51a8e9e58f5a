"""Check every file of run folders, models and augmented folders against its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pidm_core import BAD_DATA, DONE, UserError, parse, run


@dataclass(frozen=True)
class Options:
    """Options of the tool."""

    folders: tuple[str, ...] = ()
    """Folders to check, of any kind."""


def main(argv: list[str] | None = None) -> int:
    """Print one line for every fault; exit code 3 if there is one."""
    options = parse(
        Options,
        argv,
        prog="verify",
        description=__doc__,
        example="python tools/verify.py runs/market1501 data/market1501_pidm40",
        rest="folders",
    )
    if not options.folders:
        raise UserError("no folder given: python tools/verify.py FOLDER …")
    wrong = 0
    for name in options.folders:
        lines = faults(Path(name))
        wrong += len(lines)
        print("\n".join(lines) or f"{name}: every file is as it was written")
    if wrong:
        print(
            "Mend a checkpoint by removing its folder (the training goes on from the one before), "
            "generated images by the same tools/synthesize.py command, all else from a copy"
        )
    return BAD_DATA if wrong else DONE


def faults(folder: Path) -> list[str]:
    """What is wrong with a folder, by its kind."""
    if (folder / "split.json").is_file():
        from pidm_reid import verify

        return list(verify.faults(folder))
    from pidm_core.verify import verify as verify_run

    return verify_run(folder)


if __name__ == "__main__":
    run(main)
