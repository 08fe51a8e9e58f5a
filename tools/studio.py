"""Try a model in the browser: pick a person, drag a pose, watch it being drawn, edit it, blend two.

The page is served on this machine alone, and nothing is stored.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pidm_core import DONE, UserError, parse, run

if TYPE_CHECKING:
    from pidm_core.datasets import People


@dataclass(frozen=True)
class Options:
    """Which model, whose pictures, and where the page is."""

    run: str = "toy_market"
    """Run folder or bundled model."""
    data: str = ""
    """Folder of people with keypoints, to choose from (default: a few are drawn)."""
    keypoints: str = ""
    """Keypoint file of the images (default: the one beside them)."""
    pairs: str = ""
    """Pair list, which a folder without identities in its names needs."""
    port: int = 8000
    """Port on 127.0.0.1 (0 = any that is free)."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port: {self.port} is not between 0 and {(1 << 16) - 1}")


def main(argv: list[str] | None = None) -> int:
    """Load the model and serve the page until Ctrl-C."""
    example = "python tools/studio.py --run runs/market1501 --data data/market1501"
    options = parse(Options, argv, prog="studio", description=__doc__, example=example)

    from pidm_core import PIDMPipeline
    from pidm_core.studio import Studio, serve

    pipe = PIDMPipeline.from_pretrained(options.run)
    with tempfile.TemporaryDirectory(prefix="pidm-studio-") as folder:
        people = _people(options, folder)
        studio = Studio(pipe, people, title=f"{options.run}, {options.data or 'drawn people'}")
        with serve(studio, options.port) as server:
            print(f"http://127.0.0.1:{server.server_port} is open; Ctrl-C ends it", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("\nclosed; nothing was stored")
    return DONE


def _people(options: Options, folder: str) -> People:
    """The data set named, or a small ToyMarket drawn into a folder that goes away at the end."""
    from pidm_core import toy_market
    from pidm_core.datasets import read_people

    if not options.data:
        toy_market.make(folder, preset="tiny", workers=1)
    return read_people(options.data or folder, keypoints=options.keypoints, pairs=options.pairs)


if __name__ == "__main__":
    run(main)
