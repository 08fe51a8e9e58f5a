"""Compare models on drawn development people: is a student as good as its teacher?

The first model is the one that the others are held against.
"""

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
    """What is compared, on what, and where the figures go."""

    models: tuple[str, ...] = ("toy_market:50", "toy_market")
    """Run folders or bundled models; NAME:50:dpm++:dcf:0.3-1 takes other steps, sampler, guidance
    or interval of guidance than the model's own, any of them."""
    data: str = "data/toy_probe"
    """ToyMarket with development people; drawn if it is not there."""
    cache: str = "data/probe"
    """Folder of the judging networks and of what was drawn; made if it is not there."""
    pairs: int = 120
    """Pairs of source and target."""
    seeds: int = 2
    """Images of each pair; pairs times seeds should be 5,000 for a verdict."""
    json: str = ""
    """File for the figures."""
    sheet: str = ""
    """PNG file for pictures: source, pose, generated, true."""
    plot: str = ""
    """PNG file for the figures over the evaluations of an image, with their Pareto fronts."""
    dry_run: bool = False
    """Print the images and evaluations of each model, and stop."""

    def __post_init__(self) -> None:
        if min(self.pairs, self.seeds) < 1:
            raise UserError("pairs and seeds: must be at least 1")
        check_outputs(self.json, self.sheet, self.plot)


def main(argv: list[str] | None = None) -> int:
    """Draw, measure and print a row for each model. A run that was cut goes on."""
    example = "python tools/compare_models.py --models toy_market:50,toy_market,runs/toy_student"
    options = parse(Options, argv, prog="compare_models", description=__doc__, example=example)
    wanted = to_dict(options)
    json, sheet, plotted, dry_run = (
        wanted.pop(name) for name in ("json", "sheet", "plot", "dry_run")
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from pidm_core.comparison import compare, planned, plot

    if dry_run:
        print(planned(options.models, pairs=options.pairs, seeds=options.seeds))
        return DONE
    comparison = compare(**wanted)
    print(comparison.text())
    if json:
        write_json(json, comparison.to_json())
        print(f"-> {json}")
    if sheet:
        write_bytes(sheet, encode_png(comparison.sheet))
        print(f"-> {sheet}")
    if plotted:
        write_bytes(plotted, plot(comparison.rows))
        print(f"-> {plotted}")
    if not json and not sheet and not plotted:
        print("nothing was written; --json FILE keeps the figures, --sheet FILE pictures")
    return DONE


if __name__ == "__main__":
    run(main)
