"""Show a table, or an augmented folder, as one HTML page: report.html in the folder.

A folder with split.json is an augmented one; one with result.json files below is a table's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pidm_core import BAD_DATA, DONE, UserError, parse, read_keypoints, run


@dataclass(frozen=True)
class Options:
    """Which folders, and what else is known of them."""

    folders: tuple[str, ...] = ()
    """Folders of tables or augmented folders; may be given without the flag."""
    published: bool | None = None
    """Show the papers' figures in a table (default: if it is of Market-1501)."""
    keypoints: str = ""
    """Keypoint file of the real images (default: the one beside the data set)."""
    publish: str = ""
    """Folder to which tables and their cells are copied as well, such as docs/results."""
    found: str = ""
    """Keypoint file of an augmented folder's generated images (tools/extract_poses.py)."""
    dry_run: bool = False
    """Say which pages would be written, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Write the page of every folder."""
    example = "python tools/report.py results/demo"
    options = parse(
        Options, argv, prog="report", description=__doc__, example=example, rest="folders"
    )
    if not options.folders:
        raise UserError(f"name a folder (example: {example})")

    from pidm_reid.folder_report import is_augmented, write_folder_report
    from pidm_reid.report import publish, write_table_report

    found = read_keypoints(options.found) if options.found else {}
    for folder in map(Path, options.folders):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; tools/synthesize.py makes augmented folders, "
                "tools/reproduce_table.py those of tables",
                BAD_DATA,
            )
        augmented = is_augmented(folder)
        if not (augmented or next(folder.glob("*/result.json"), None)):
            raise UserError(
                f"{folder}: neither an augmented folder (split.json) nor that of a table "
                "(result.json files in its folders)",
                BAD_DATA,
            )
        if options.dry_run:
            kind = "an augmented folder" if augmented else "a table"
            print(f"{folder / 'report.html'}: would show {kind}")
            continue
        if augmented:
            keypoints = Path(options.keypoints) if options.keypoints else None
            path = write_folder_report(folder, keypoints=keypoints, found=found)
        else:
            path = write_table_report(folder, published=options.published)
            if options.publish:
                print(f"-> {publish(folder, Path(options.publish), published=options.published)}")
        print(f"-> {path}")
    return DONE


if __name__ == "__main__":
    run(main)
