"""Work on a GPU that is lent for minutes: `pack` the data here; `run` there trains PIDM and makes
the table, as far as the time goes, and the same command goes on. `pack --help` has its options.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pidm_core import BAD_DATA, DONE, UserError, load_config, parse, run, stop_after, write_bytes
from pidm_reid.config import ReidTable

if TYPE_CHECKING:
    from collections.abc import Callable

PACK_EXAMPLE = "python tools/slot.py pack --data data/market1501"
RUN_EXAMPLE = "python tools/slot.py run --minutes 9 --out out"


@dataclass(frozen=True)
class PackOptions:
    """A data set, and where its packs go."""

    data: str = "data/market1501"
    """Folder of people in Market-1501 layout, with the keypoint file of the training images."""
    packs: str = "packs"
    """Folder for train.tar.xz (with the joints) and test.tar.xz (query and gallery)."""
    mib: int = 55
    """Largest file in MiB; a larger pack is cut in pieces NAME.1of2, NAME.2of2."""
    dry_run: bool = False
    """Count files and bytes, and stop."""


@dataclass(frozen=True)
class RunOptions:
    """What is done in the slots of a GPU."""

    train: str = "configs/market1501_slot.yaml"
    """Configuration of the training, on all training images of the table's data set."""
    table: str = "configs/reid_market1501_slot.yaml"
    """Configuration of the table; its `run` is the trained model, in bfloat16."""
    packs: str = "packs"
    """Folder of packs; what is not there yet is unpacked of train, test, run and results."""
    out: str = "out"
    """Folder for what comes back: the table, and the packs run (the model) and results."""
    minutes: float = 0.0
    """Stop and save after so many minutes, exit code 143 (0: no limit)."""
    mib: int = 16
    """Largest file in --out in MiB; a larger pack is cut in pieces NAME.1of2, NAME.2of2."""
    dry_run: bool = False
    """Say which packs are here and what would be done, and stop."""

    def __post_init__(self) -> None:
        if self.mib < 1:  # before the minutes are spent
            raise UserError(f"mib {self.mib}: a file must have room for 1 MiB")
        if self.minutes < 0:
            raise UserError(f"minutes {self.minutes:g} is negative")


def main(argv: list[str] | None = None) -> int:
    """Pack, or run."""
    argv = sys.argv[1:] if argv is None else argv
    return pack(argv[1:]) if argv[:1] == ["pack"] else work(argv[argv[:1] == ["run"] :])


def pack(argv: list[str]) -> int:
    """Write the packs of a data set."""
    options = parse(PackOptions, argv, prog="slot pack", description=__doc__, example=PACK_EXAMPLE)

    from pidm_core.packs import PARTS, market_files, write_pack

    for part in PARTS:
        files = market_files(options.data, part)
        size = sum(path.stat().st_size for path in files.values()) / 2**20
        print(f"{part}: {len(files):,} files, {size:.1f} MiB", flush=True)
        if not options.dry_run:
            written = write_pack(Path(options.packs) / f"{part}.tar.xz", files, mib=options.mib)
            print("\n".join(f"-> {p}, {p.stat().st_size / 2**20:.1f} MiB" for p in written))
    return DONE


def work(argv: list[str]) -> int:
    """Unpack, train, make the table, and leave in --out what there is of it at the end."""
    options = parse(RunOptions, argv, prog="slot run", description=__doc__, example=RUN_EXAMPLE)
    end = time.monotonic() + 60 * options.minutes

    def left() -> str:
        return str(max(1e-3, (end - time.monotonic()) / 60) if options.minutes else 0)

    from pidm_core import has_market1501
    from pidm_core.packs import pieces, unpack

    table = load_config(ReidTable, options.table)
    if "/" not in table.run:
        raise UserError(
            f"{options.table}: run '{table.run}' is no path for the trained model, such as "
            "runs/market1501_slot"
        )
    data, model, results = Path(table.data), Path(table.run), Path(table.results) / table.name
    places = {"train": data, "test": data, "run": model.parent, "results": results}
    for name, place in places.items():
        path = Path(options.packs) / f"{name}.tar.xz"
        if options.dry_run:
            print(f"{path}: " + ("here" if pieces(path) else "not here, or not all of it"))
        elif pieces(path):
            print(f"{path} -> {place}: {len(unpack(path, place))} new entries", flush=True)
    if options.dry_run and not has_market1501(data):
        return DONE
    try:
        return _steps(options, table, left)
    finally:
        stop_after(0)
        if not options.dry_run:
            _bring_back(Path(options.out), results, model, mib=options.mib)


def _steps(options: RunOptions, table: ReidTable, left: Callable[[], str]) -> int:
    """The training, as long as there is no model, and the table."""
    import reproduce_table
    import train_pidm

    from pidm_core import has_market1501
    from pidm_core.checkpoint import bundle

    asked = ["--dry-run"] * options.dry_run
    run = Path(f"{table.run}_training")
    if not Path(table.run).is_dir():
        train = ["--config", options.train, "--data", table.data, "--out", str(run)]
        if code := train_pidm.main([*train, "--minutes", left(), *asked]):
            return code
        if not options.dry_run:
            bundle(run, Path(table.run))
    if not (options.dry_run or has_market1501(table.data, "query")):
        raise UserError(
            "PIDM is trained; for the table carry query and gallery, test.tar.xz", BAD_DATA
        )
    return reproduce_table.main(["reid", "--config", options.table, "--minutes", left(), *asked])


def _bring_back(out: Path, results: Path, model: Path, *, mib: int) -> None:
    """The table to be read, and two packs: the model and the results, with which a slot goes on."""
    from pidm_core.packs import write_pack

    files = {
        path.relative_to(results): path
        for path in results.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }
    packs = {
        "results": {
            name.as_posix(): path
            for name, path in files.items()
            if not any(part.startswith(".") for part in name.parts)  # what a kill left
        },
        "run": {f"{model.name}/{p.name}": p for p in sorted(model.glob("*")) if p.is_file()},
    }
    for name, contents in packs.items():
        if contents:
            print(*write_pack(out / f"{name}.tar.xz", contents, mib=mib), sep="\n")
    for name in ("table.json", "table.md"):
        if (results / name).is_file():
            write_bytes(out / name, (results / name).read_bytes())


if __name__ == "__main__":
    run(main)
