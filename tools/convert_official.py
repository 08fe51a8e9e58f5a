"""Make a run folder of the checkpoint that the authors of PIDM published (last.pt).

Only tensors are read from the file; nothing in it is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pidm_core import DONE, UserError, parse, quoted, run


@dataclass(frozen=True)
class Options:
    """Which file, and where the run folder goes."""

    checkpoint: str = ""
    """The authors' checkpoint."""
    out: str = "runs/pidm_official"
    """Run folder."""
    size: tuple[int, int] = (256, 256)
    """Height and width in pixels that it was trained on; the file does not say."""
    dry_run: bool = False
    """Read and check the file, say what would be taken, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Convert, and name what was left out."""
    options = parse(
        Options,
        argv,
        prog="convert_official",
        description=__doc__,
        example="python tools/convert_official.py --checkpoint last.pt --out runs/pidm_official",
    )
    if not options.checkpoint:
        raise UserError("no checkpoint; give --checkpoint last.pt")

    from pidm_core.official import convert

    done = convert(
        Path(options.checkpoint), Path(options.out), size=options.size, dry_run=options.dry_run
    )
    print(f"{options.checkpoint}: took '{done.part}', {done.parameters / 1e6:.2f} M parameters")
    if done.unused:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in done.unused.items())
        print(f"left out, never used by the network: {kinds}")
    if done.other_parts:
        print(f"left out, other parts of the file: {', '.join(done.other_parts)}")
    if options.dry_run:
        print(f"{options.out}: nothing was written")
        return DONE
    print(
        f"{options.out}: converted. Next: python tools/synthesize.py --run {quoted(options.out)} "
        "--data data/market1501 --ratio 0.4"
    )
    return DONE


if __name__ == "__main__":
    run(main)
