"""Say what is here, what is missing and what to do: environment, device, weights, data, disk.

ok: found; missing: everything else goes on without it; problem: mend it first.
The exit code is 4 if there is a problem.
"""

from __future__ import annotations

from dataclasses import dataclass

from pidm_core import DONE, ENVIRONMENT, UserError, parse, run


@dataclass(frozen=True)
class Options:
    """What is looked at beside the environment."""

    data: str = ""
    """Folder of people to look at, such as data/market1501."""
    keypoints: str = ""
    """Keypoint file of the people (default: the one beside them)."""
    pairs: str = ""
    """Pair list of the people (default: the one beside them, else all pairs)."""
    weights: str = "weights"
    """Folder of weight files, looked at beside torch's own cache."""


def main(argv: list[str] | None = None) -> int:
    """Look at everything, a line each, and say what to run next."""
    example = "python tools/doctor.py --data data/market1501"
    options = parse(Options, argv, prog="doctor", description=__doc__, example=example)

    from pidm_core.doctor import examine, next_training
    from pidm_reid.config import IMAGENET_FILE

    problems = 0
    files = options.keypoints, options.pairs
    if any(files) and not options.data:
        raise UserError("keypoints, pairs: of which people? give --data DIR too")
    for check in examine(
        options.data,
        options.weights,
        student_file=IMAGENET_FILE,
        keypoints=options.keypoints,
        pairs=options.pairs,
    ):
        print(check, flush=True)
        problems += check.state == "problem"
    if problems:
        print(f"problems: {problems}; mend them as said above, and run this again")
        return ENVIRONMENT
    training = next_training(options.data, *files) if options.data else "make demo"
    print(f"No problem. Next: {training}")
    return DONE


if __name__ == "__main__":
    run(main)
