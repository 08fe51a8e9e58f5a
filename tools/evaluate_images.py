"""Score a folder of generated images, made by any method: SSIM, LPIPS, FID, KID, coverage."""

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

    from pidm_core.evaluation import evaluate, find_judges, read_pictures

    pictures = read_pictures(options.generated, options.targets or options.real)
    report = evaluate(pictures, options, find_judges(options))
    print("\n".join(map(str, report.figures)))
    for line in report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    if options.json:
        write_json(options.json, asdict(report))
        print(f"-> {options.json}")
    return SKIPPED if report.left_out else DONE


if __name__ == "__main__":
    run(main)
