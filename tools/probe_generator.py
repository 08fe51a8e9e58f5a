"""Measure on drawn development people whether a model draws the same person in the asked pose."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pidm_core import (
    DONE,
    UserError,
    check_outputs,
    encode_png,
    parse,
    run,
    to_dict,
    write_bytes,
    write_json,
)


@dataclass(frozen=True)
class Options:
    """What is measured, on what, and where the figures go."""

    run: str = "toy_market"
    """Run folder or bundled model."""
    data: str = "data/toy_probe"
    """ToyMarket with development people; drawn if it is not there."""
    cache: str = "data/probe"
    """Folder of the two networks that judge the pictures; trained if they are not there."""
    pairs: int = 200
    """Pairs of source and target; 200 cost about 3 s a network evaluation on two CPU cores."""
    guidance: tuple[str, ...] = ()
    """Guidances, such as dcf,chain,cf,style,none; nothing here and below: the model's own."""
    steps: tuple[int, ...] = ()
    """Numbers of denoising steps, such as 5,10,20."""
    w_p: tuple[float, ...] = ()
    """Guidance weights of the pose, such as 1,2."""
    w_s: tuple[float, ...] = ()
    """Guidance weights of the style."""
    seed: int = 0
    """Seed of the pairs and of the noise."""
    json: str = ""
    """File for the figures."""
    sheet: str = ""
    """PNG file for pictures: source, pose, generated, true."""
    dry_run: bool = False
    """Say how many network evaluations it would take, and stop."""

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.seed < 0:
            raise UserError("pairs: must be at least 1; seed: at least 0")
        check_outputs(self.json, self.sheet)


def main(argv: list[str] | None = None) -> int:
    """Measure every combination of the settings and print a row for each."""
    example = "python tools/probe_generator.py --guidance dcf,chain --w-s 1,2 --sheet sheet.png"
    options = parse(Options, argv, prog="probe_generator", description=__doc__, example=example)
    wanted = to_dict(options)
    json, sheet, dry_run = (wanted.pop(name) for name in ("json", "sheet", "dry_run"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from pidm_core.probe_report import outlook, probe_generator

    if dry_run:
        print(outlook(**wanted))
        return DONE
    report = probe_generator(**wanted)
    print(report.text())
    if json:
        write_json(json, report.to_json())
        print(f"-> {json}")
    if sheet:
        write_bytes(sheet, encode_png(report.sheet))
        print(f"-> {sheet}")
    if not json and not sheet:
        print("nothing was written; --json FILE keeps the figures, --sheet FILE pictures")
    return DONE


if __name__ == "__main__":
    run(main)
