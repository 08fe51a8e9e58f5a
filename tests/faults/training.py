"""Training that is killed, runs out of disk, or finds its files changed."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from people import make_market

from faults.harness import Finished, Measure, Row, fault, tree
from faults.warm import Warm, warm
from pidm_core import ENVIRONMENT, UserError
from pidm_core.checkpoint import checkpoints, latest_checkpoint, load_model
from pidm_core.verify import verify

STEPS, SAVE_EVERY = 6, 2
CONFIG = f"""
model:
  {{size: [16, 8], channels: 32, channel_mults: [1], blocks_per_level: 1, texture_factors: [1]}}
train:
  {{steps: {STEPS}, save_every: {SAVE_EVERY}, batch_size: 4, lr: 1e-3, warmup_steps: 2,
   sample_every: 0, log_every: 1, precision: fp32}}
"""
KILLED = -9
SMALLEST_DISK = "256k"


class Lab:
    """A tiny training: three savings of 3.5 MB, and what comes out if nothing interrupts it."""

    def __init__(self, root: Path, warm: Warm) -> None:
        self.root, self._warm, self._log = root, warm, root / "log"
        self.config, self.run = root / "config.yaml", root / "out" / "run"
        self.config.write_text(f"data: {make_market(root / 'market')}\n{CONFIG}")
        self.train("none", 0)
        self.points = self._log.read_text().splitlines()
        begin = time.monotonic()
        self.again()
        self.seconds = time.monotonic() - begin
        self.straight = self.result(self.run)

    def train(self, action: str, at: int, **options: object) -> Finished:
        """Train in a new folder, with a fault at a write point."""
        self._log.unlink(missing_ok=True)
        shutil.rmtree(self.run.parent, ignore_errors=True)
        self.run.parent.mkdir()
        return self.go_on(env=fault(action, at, root=self.run.parent, log=self._log), **options)

    def again(self) -> Finished:
        """Train in a new folder without any fault."""
        shutil.rmtree(self.run.parent)
        self.run.parent.mkdir()
        return self.go_on()

    def go_on(self, run: Path | None = None, **options: object) -> Finished:
        """Run the same command again."""
        command = ["tools/train_pidm.py", "--config", self.config, "--out", run or self.run]
        return self._warm.run(command, cwd=self.root, timeout=120, **options)  # type: ignore[arg-type]

    def finishes(self, run: Path | None = None) -> str:
        """Run the command until its end: what differs from the straight run, "" = nothing."""
        done, run = self.go_on(run), run or self.run
        if done.code != 0:
            return f"exit code {done.code} when run again: {done.err.strip()[-200:]}"
        found = self.result(run)
        return "; ".join(k for k, v in self.straight.items() if found.get(k) != v)

    @staticmethod
    def result(run: Path) -> dict[str, str]:
        """Weights, averages, moments and model by their SHA-256, and the loss of every step.

        A sample fed twice, left out or fed at another step changes the losses from there on.
        """
        last = run / "checkpoints" / f"step_{STEPS:08d}"
        files = {f"{name} differs": sha for name, sha in tree(last).items() if "safe" in name}
        model = tree(run / "model")["model.safetensors"]
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        fed = str([(line["step"], line["loss"], line["mse"], line["skipped"]) for line in lines])
        return {**files, "the model differs": model, "other samples were fed": fed}

    def spread(self, number: int) -> list[int]:
        """So many write points, all of them in turn or evenly spread."""
        count = len(self.points)
        if number >= count:
            return [1 + k % count for k in range(number)]
        return [1 + k * count // number for k in range(number)]


@functools.cache
def lab() -> Lab:
    """The one training of all measures here, in a folder that goes at the end."""
    home = tempfile.TemporaryDirectory()
    atexit.register(home.cleanup)
    return Lab(Path(home.name), warm())


# ---------------------------------------------------------------- kills


def kills(number: int) -> Row:
    """Half of the kills at write points, half at random; two to a run, which then must finish."""
    rng, promised = random.Random(0), "resumes, bit-identical, at most one saving's work lost"
    work = lab()
    aimed = work.spread((number + 1) // 2)
    row = Row(
        f"training killed: {len(aimed)} at {len(set(aimed))} of its {len(work.points)} write "
        f"points, {number // 2} at random",
        promised,
    )
    for case, at in enumerate(aimed):
        died = [(f"at {work.points[at - 1]}", work.train("kill", at), left_behind(work.run))]
        if case < number // 2:
            died.append(("at random", killed_at_random(work, rng), left_behind(work.run)))
        differs = work.finishes()
        for where, done, wrong in died:
            wrong = wrong or differs or ("" if done.code == KILLED else f"code {done.code}")
            row.check(not wrong, f"{where}: {wrong}")
    return row


def killed_at_random(work: Lab, rng: random.Random) -> Finished:
    """Go on with the run and kill it; anew if it ended before."""
    while (done := work.go_on(kill_after=rng.uniform(0, work.seconds))).code == 0:
        shutil.rmtree(work.run)
    return done


def left_behind(run: Path) -> str:
    """What a dead process left that it must not, "" = nothing: broken files, too much lost work."""
    if lines := faults(run):
        return lines[0]
    metrics = run / "metrics.jsonl"
    trained = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    saved = max((int(path.name[5:]) for path in checkpoints(run)), default=0)
    return f"{trained - saved} steps lost" if trained - saved > SAVE_EVERY else ""


def faults(run: Path) -> list[str]:
    """What verify says; nothing where there is not yet a run folder."""
    try:
        return verify(run)
    except UserError:
        return []


# ---------------------------------------------------------------- no room


def errors(number: int) -> Row:
    """No room, no permission or a broken disk, at write points of the training."""
    work = lab()
    points = work.spread(number)
    row = Row(
        f"training: write error at {len(set(points))} of its {len(work.points)} write points",
        "exit code 4 or not harmed, no broken file, finishes identically",
    )
    for case, at in enumerate(points):
        action = ("enospc", "eio", "eacces")[case % 3]
        done = work.train(action, at)
        wrong = "".join(faults(work.run)[:1]) or work.finishes()
        good = done.code in (ENVIRONMENT, 0) and not done.traceback and not wrong
        row.check(good, f"{action} at {work.points[at - 1]}: {done.code} {wrong}")
    return row


def full_disks(number: int) -> Row:
    """Files that may not grow further, and small disks that fill up, at sizes drawn by chance."""
    row = Row("training on a full disk", "exit code 4, no broken file, finishes identically")
    rng = random.Random(0)
    work = lab()
    for _ in range(number // 2):
        limit = rng.choice([rng.randrange(2000), rng.randrange(1_780_000)])
        done = work.train("none", 0, file_bytes=limit)
        _check(row, work, done, work.run, f"files of {limit} bytes", room=limit)
    with small_disk(work.root / "disk") as disk:
        for _ in range(number - number // 2 if disk else 0):
            size = rng.randrange(256, 11_000)  # a run needs 11.5 MiB
            resize(disk, f"{size}k")
            done = work.go_on(disk / "run")
            resize(disk, "64m")
            _check(row, work, done, disk / "run", f"disk of {size} KiB")
            shutil.rmtree(disk / "run")
            resize(disk, SMALLEST_DISK)
        row.what += "" if disk else " (limits only: nothing may be mounted here)"
    return row


def _check(
    row: Row, work: Lab, done: Finished, run: Path, what: str, *, room: int | None = None
) -> None:
    """room: bytes that fit into the file which takes the message."""
    wrong = "".join(faults(run)[:1]) or work.finishes(run)
    told = done.err.count("\n") == 1 or len(done.err) == room
    good = done.code == ENVIRONMENT and told and not wrong
    row.check(good, f"{what}: {done.code} {wrong} {'' if good else done.err.strip()[-200:]}")


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of its own in memory, or None where mounting is not permitted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALLEST_DISK}", "tmpfs", str(place)]
    if not _succeeds(mount):
        yield None
        return
    try:
        yield place
    finally:
        _succeeds(["umount", str(place)])


def resize(disk: Path, size: str) -> None:
    """Make a small disk larger or smaller."""
    assert _succeeds(["mount", "-o", f"remount,size={size}", str(disk)])


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


# ---------------------------------------------------------------- changed files


def bit_rot(number: int) -> Row:
    """One bit flipped in a checkpoint, or (every fifth time) in the model folder."""
    row = Row("one flipped bit in a checkpoint or model", "found by verify, and not resumed from")
    rng, work = random.Random(0), lab()
    work.again()
    logging.disable(logging.WARNING)  # each damaged checkpoint is named
    for case in range(number):
        home = work.run / "model" if case % 5 == 4 else checkpoints(work.run)[0]
        path = rng.choice(sorted(home.iterdir()))
        where = rng.randrange(path.stat().st_size)
        flip(path, where, bit := rng.randrange(8))
        good = verify(work.run) != [] and not _used(work.run, home)
        row.check(good, f"{path.name}, byte {where}, bit {bit}")
        flip(path, where, bit)
    row.wrong += verify(work.run)  # which is as it was written
    logging.disable(logging.NOTSET)
    return row


def _used(run: Path, home: Path) -> bool:
    """Whether a damaged folder is taken for a good one."""
    if home.name == "model":  # loading checks the weights alone
        return "model.safetensors" in "".join(verify(run)) and loads(home)
    found = latest_checkpoint(run)
    return found is None or found[0]["step"] == STEPS


def loads(model: Path) -> bool:
    """Whether a model folder loads."""
    try:
        load_model(model)
    except UserError:
        return False
    return True


def flip(path: Path, where: int, bit: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(where)
        (byte,) = file.read(1)
        file.seek(where)
        file.write(bytes([byte ^ 1 << bit]))


MEASURES: tuple[Measure, ...] = (kills, errors, full_disks, bit_rot)
