"""Generate new images of the people in a training set, in a folder that torchreid reads.

Run the same command again to go on; with --shard 3/16 it does the third of sixteen parts, and so
does the third of sixteen processes of `accelerate launch tools/synthesize.py ...`.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pidm_core import DONE, SKIPPED, Sampling, UserError, parse, quoted, run, stop_after
from pidm_reid.config import PlanPolicy

if TYPE_CHECKING:
    from pidm_reid.synthesize import Generator, Work


@dataclass(frozen=True)
class Options(Sampling, PlanPolicy):
    """What to generate, with which model, and where to."""

    ratio: float = 0.4
    """Share of the real training images kept (above 0, up to 1)."""
    run: str = ""
    """Run folder or bundled model (default: the newest in runs/, else the bundled one)."""
    data: str = ""
    """Folder of people in Market-1501 layout (default: the one the run was trained on)."""
    keypoints: str = ""
    """Keypoint file of the training images (default: the one beside them)."""
    out: str = ""
    """Augmented folder (default: data/NAME_pidm40 and the like)."""
    per_image: int = 0
    """Generated images per real one (0: as --fill-to says)."""
    fill_to: str = "full"
    """Real and generated images together: 'full' (the size of the training set) or a number."""
    poses: str = ""
    """Keypoint file to choose poses from (default: those of the images kept)."""
    import_from: str = ""
    """Take over the images of another method from this folder instead of generating (the data
    set needs its keypoint file all the same)."""
    seed: int = 0
    """Seed of the choice of images, of the plan and of the noise."""
    shard: str = ""
    """Part K/N of the work (default: all of it; of several launched processes: one part each)."""
    mark: bool = True
    """Say of each image in its metadata that it is generated; the manifest says so anyway."""
    copy: bool = False
    """Copy the real images instead of linking to them."""
    minutes: float = 0.0
    """Stop after so many minutes, as SIGTERM does (0: no limit)."""
    dry_run: bool = False
    """Say what would be done and what it would cost, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Plan, generate, and say where the folder is and what was left out."""
    options = parse(
        Options,
        argv,
        prog="synthesize",
        description=__doc__,
        example="python tools/synthesize.py --ratio 0.4",
    )
    stop_after(options.minutes)
    shard, fill_to = _shard(options.shard), _fill_to(options.fill_to)
    policy = PlanPolicy(options.pose_policy, options.same_scale, options.source_policy)
    amounts = options.per_image, options.fill_to, options.shard, options.run
    if options.import_from and (policy, amounts) != (PlanPolicy(), (0, "full", "", "")):
        raise UserError(
            "import-from takes over all images as they are; leave out the policies, per-image, "
            "fill-to, shard and run"
        )
    if options.import_from and not options.data:
        raise UserError("import-from needs --data DIR, the data set whose people are shown")

    from pidm_core import find_keypoints
    from pidm_reid import generators, leaks, plan, synthesize

    plan.check_ratio(options.ratio)
    model = "" if options.import_from else options.run or generators.newest_run()
    data, keypoints = options.data, options.keypoints
    if not data:
        data, keypoints = generators.run_data(model)
    work = synthesize.prepare(
        synthesize.Request(
            data=Path(data),
            keypoints=Path(options.keypoints or keypoints or find_keypoints(data)),
            ratio=options.ratio,
            seed=options.seed,
            per_image=options.per_image,
            fill_to=fill_to,
            poses=Path(options.poses) if options.poses else None,
            policy=policy,
        )
    )
    name = synthesize.folder_name(data, kind="pidm", ratio=options.ratio, seed=options.seed)
    out = Path(options.out or f"data/{name}")
    if not len(work.recipes) and not options.import_from:
        raise UserError(
            f"nothing to generate beside {len(work.real):,} images kept; add --per-image 1, or "
            f"--fill-to with a number above {len(work.real)}"
        )
    left_out = list(work.broken)
    contents = leaks.read_contents(data)
    leaks.refuse_overlap(contents, data)
    if options.import_from and options.dry_run:
        print(f"{out}: {work.summary()}; those of {options.import_from} would be taken instead")
        return DONE
    if options.import_from:
        left_out += _import(options, work, out, real=contents.named())
    else:
        saw = leaks.generator_saw(model, contents, real=work.split["real"])
        generator = generators.pidm(model, sampling=options, saw=saw, mark=options.mark)
        print(f"{data}: {work.summary()} with {model}", flush=True)
        if options.dry_run:
            print(synthesize.outlook(work, generator, out, shard=shard))
            return DONE
        _generate(work, generator, out, shard=shard, copy=options.copy)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return SKIPPED if left_out else DONE


def _generate(
    work: Work, generator: Generator, out: Path, *, shard: tuple[int, int], copy: bool
) -> None:
    from pidm_reid import lease
    from pidm_reid.synthesize import render_rest, start

    with lease.hold(out, shard):
        todo = start(work, generator, out, shard=shard, copy=copy)
        done = render_rest(todo, work, generator, out, shard=shard, label="synthesize")
    part = f"part {shard[0]} of {shard[1]}"
    if todo:
        print(f"{out}: {done:,} images generated, {part} is complete. Next:")
    else:
        planned = len(work.recipes[shard[0] - 1 :: shard[1]])
        print(f"{out}: {part} was complete already ({planned:,} images). Next:")
    print(_next(work, out))


def _import(options: Options, work: Work, out: Path, *, real: dict[str, str]) -> list[str]:
    from pidm_reid.imported import import_images

    images = Path(options.import_from)
    notes = list(import_images(work, images, out, real=real, copy=options.copy, mark=options.mark))
    print(
        f"{out}: {notes.count(''):,} images taken over beside {len(work.real):,} real ones. Next:"
    )
    print(_next(work, out))
    return [line for line in notes if line]


def _next(work: Work, out: Path) -> str:
    """The command that trains on the folder; of drawn people a small one, for minutes."""
    from pidm_core import is_drawn

    command = f"  python tools/train_reid.py --augmented {quoted(out)}"
    if not is_drawn(work.real[0]):
        return command
    short = "--batch-size 8 --standard.steps 60 --standard.warmup-steps 6 --finetune.steps 30"
    return f"{command} --height 64 --width 32 {short} --finetune.warmup-steps 3"


def _shard(text: str) -> tuple[int, int]:
    """K and N; without a text the rank among the processes that a launcher started."""
    if not text:
        return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard '{text}' is not K/N with 1 <= K <= N, such as 3/16")
    return int(match[1]), int(match[2])


def _fill_to(text: str) -> int:
    if text == "full":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"fill-to '{text}' is neither 'full' nor a number of images")
    return int(text)


if __name__ == "__main__":
    run(main)
