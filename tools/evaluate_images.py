"""Score a folder of generated images, made by any method: SSIM, LPIPS, FID, KID, diversity."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from pidm_core import DONE, SKIPPED, UserError, parse, run, write_json
from pidm_core.config import ImageSettings


@dataclass(frozen=True)
class Options(ImageSettings):
    """A folder of generated images, and what it is compared with."""

    generated: str = ""
    """Folder of generated images, named <source>_2_<target>_vis.png or as PATN's."""
    json: str = ""
    """File for the figures."""
    dry_run: bool = False
    """Say what would be compared with what, and stop."""

    def check(self) -> None:
        """Raise UserError for what lacks."""
        if not self.generated:
            raise UserError("generated: a folder of images is needed (--generated DIR)")
        super().check()


def main(argv: list[str] | None = None) -> int:
    """Print every figure with its protocol, and one line for what could not be measured."""
    example = "python tools/evaluate_images.py --generated results/pidm --real data/train"
    options = parse(Options, argv, prog="evaluate_images", description=__doc__, example=example)
    options.check()

    from pidm_core.evaluation import evaluate, find_judges, images_below, read_pictures

    pictures = read_pictures(options.generated, options.targets or options.real)
    if options.dry_run:
        known = sum(picture.target is not None for picture in pictures)
        real = len(images_below(options.real))
        print(f"{len(pictures):,} images, {known:,} with a target; {real:,} real ones")
        return DONE
    report = evaluate(pictures, options, find_judges(options))
    print("\n".join(map(str, report.figures)))
    for line in report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    if options.json:
        write_json(options.json, asdict(report))
        print(f"-> {options.json}")
    else:
        print("nothing was written; --json FILE keeps the figures")
    return SKIPPED if report.left_out else DONE


if __name__ == "__main__":
    run(main)
