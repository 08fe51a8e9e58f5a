"""Synthesis is killed, runs out of disk, meets a second writer: nothing lost, nothing half done."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from people import make_market, planned, render_all

from faults.harness import ROOT, Finished, Measure, Row, fault, run, start, tree
from pidm_reid import folder, verify

WORLDS = (1, 2, 4)
KILLED_ROUNDS = 5  # before a folder is finished and compared
PATIENCE_S = 300.0
LIMITS = (100, 1_000, 3_000, 6_000, 12_000)  # bytes; the plan and the ledger are the largest files


@dataclass(frozen=True)
class Stage:
    """Drawn people, a tiny untrained model, and what an undisturbed run makes of them."""

    home: Path
    straight: dict[str, str]  # SHA-256 of every file but the ledger
    ledger: dict[str, str]  # line of every image
    points: int  # write points of one worker
    writes_s: float  # from its lease to its end

    def command(self, out: Path) -> list[str | Path]:
        """The real tool on these people."""
        people = ["--run", self.home / "model", "--data", self.home / "toy", "--out", out]
        return ["tools/synthesize.py", "--ratio", "0.8", "--fill-to", "76", *people]

    def differences(self, out: Path) -> list[str]:
        """Files that are not as in the undisturbed run; lost ones not counted."""
        return [name for name, digest in images(out).items() if self.straight.get(name) != digest]

    def same(self, out: Path) -> bool:
        """Whether everything is as after the undisturbed run."""
        return images(out) == self.straight and lines(out) == self.ledger


def images(out: Path) -> dict[str, str]:
    """SHA-256 of all files but those that tell the order and the time of the work."""
    ours = {path.name for path in folder.ledgers(out / folder.MANIFEST)} | {folder.COST}
    return tree(out, without=sorted(ours))


def lines(out: Path) -> dict[str, str]:
    """What the ledgers say of each image."""
    ledger = folder.read_ledger(out / folder.MANIFEST)
    return {name: json.dumps(entry, sort_keys=True) for name, entry in ledger.items()}


@cache
def stage() -> Stage:
    """Made once for all measurements."""
    home = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    toy = ["tools/make_toy_market.py", "--preset", "tiny", "--out", home / "toy"]
    model = ["-c", f"from pathlib import Path; import tiny; tiny.save_tiny(Path('{home}/model'))"]
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    out, log = home / "straight/out", home / "log"
    first = Stage(home, {}, {}, 0, 0)
    for command in (toy, model):
        _expect(run(command, cwd=home, env=path, timeout=PATIENCE_S))
    out.parent.mkdir()
    process = start(first.command(out), cwd=home, env=fault("none", 0, root=out, log=log))
    began = _wait_for_leases(out, [process])
    _expect(_finish(process))
    writes_s = time.monotonic() - began
    return Stage(home, images(out), lines(out), len(log.read_text().splitlines()), writes_s)


def _place() -> tempfile.TemporaryDirectory[str]:
    """A folder as deep as that of the undisturbed run: links are relative."""
    return tempfile.TemporaryDirectory(dir=stage().home)


def _expect(done: Finished) -> None:
    if done.code:
        raise RuntimeError(done.err)


def _finish(process: subprocess.Popen[str]) -> Finished:
    out, err = process.communicate(timeout=PATIENCE_S)
    return Finished(process.returncode, out, err, hung=False)


def _workers(
    out: Path, world: int, faults: Sequence[dict[str, str]] = ()
) -> list[subprocess.Popen[str]]:
    """Workers as a launcher starts them; faults: a further environment for each."""
    ranks = [{"RANK": str(rank), "WORLD_SIZE": str(world)} for rank in range(world)]
    extra = faults or [{}] * world
    command = stage().command(out)
    return [
        start(command, cwd=out.parent, env={**r, **e}) for r, e in zip(ranks, extra, strict=True)
    ]


def _wait_for_leases(out: Path, processes: Sequence[subprocess.Popen[str]]) -> float:
    """Until every worker that lives has its lease; the time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        alive = sum(process.poll() is None for process in processes)
        if len(list(out.glob(".lease-*"))) >= alive:
            break
        time.sleep(0.002)
    return time.monotonic()


# ---------------------------------------------------------------- kills


def kills(number: int) -> Row:
    """Half of them at a write point, half at a random moment after the lease was taken."""
    row = Row(
        "SIGKILL of tools/synthesize.py; 1, 2 and 4 workers, another number at each resume",
        "0 half-written, lost or duplicate files; tree and ledger as in the straight run",
    )
    at, case, turn = stage(), 0, 0
    while row.times < number:
        with _place() as name:
            out = Path(name) / "out"
            for _ in range(KILLED_ROUNDS):
                if row.times < number:
                    _kill(row, out, WORLDS[turn % 3], turn, left=number - row.times)
                    turn += 1
            codes = [_finish(process).code for process in _workers(out, WORLDS[turn % 3])]
            if any(codes) or not at.same(out):
                row.wrong.append(f"folder {case}: {codes}, {at.differences(out)[:2]}")
            if list(verify.faults(out)):
                row.wrong.append(f"folder {case}: {next(verify.faults(out))}")
            case, turn = case + 1, turn + 1
    return row


def _kill(row: Row, out: Path, world: int, turn: int, *, left: int) -> None:
    at, world = stage(), min(world, left)
    if turn % 2:
        processes = _workers(out, world)
        _wait_for_leases(out, processes)
        time.sleep(random.Random(turn).random() * at.writes_s / world)
        for process in processes:
            process.send_signal(signal.SIGKILL)
    else:
        step = [1 + (turn * 17 + 7 * rank) % (at.points // world) for rank in range(world)]
        log = out.parent / "log"
        processes = _workers(out, world, [fault("kill", k, root=out, log=log) for k in step])
    for process in processes:
        done = _finish(process)
        if done.code == -signal.SIGKILL:
            broken = [n for n in at.differences(out) if not Path(n).name.startswith(".")]
            row.check(not broken, f"turn {turn}: {broken[:2]}")
        elif done.code:
            row.wrong.append(f"turn {turn}: {done.code} {done.err[-200:]}")


# ---------------------------------------------------------------- full disks


def full_disks(number: int) -> Row:
    """At write points, evenly chosen, and with a limit on the size of files."""
    row = Row(
        "disk full in tools/synthesize.py, at its write points and by RLIMIT_FSIZE",
        "exit code 4, no broken file under a final name, finishes identically with room",
    )
    points = range(1, stage().points + 1)
    wanted = max(1, min(number - min(len(LIMITS), number // 2), len(points)))
    chosen = [points[k * len(points) // wanted + len(points) // wanted // 2] for k in range(wanted)]
    for case in [*chosen, *(-limit for limit in LIMITS[-(number // 2) :])][:number]:
        with _place() as name:
            _fill_disk(row, Path(name) / "out", case)
    return row


def _fill_disk(row: Row, out: Path, case: int) -> None:
    """case: a write point, or a negative limit in bytes."""
    at, log = stage(), out.parent / "log"
    env = fault("enospc", case, root=out, log=log) if case > 0 else None
    process = start(
        at.command(out), cwd=out.parent, env=env, file_bytes=-case if case < 0 else None
    )
    done = _finish(process)
    broken = [n for n in at.differences(out) if not Path(n).name.startswith(".")]
    harmless = done.code == 0 and at.same(out)  # such as "make this folder", which is there
    stopped = done.code == 4 and done.err.strip().splitlines()[-1].startswith("error: ")
    again = run(at.command(out), cwd=out.parent, timeout=PATIENCE_S)
    good = (stopped or harmless) and not broken and not done.traceback
    row.check(good and again.code == 0 and at.same(out), f"{case}: {done.code} {done.err[-200:]}")


# ---------------------------------------------------------------- two writers


def races(number: int) -> Row:
    """At most 20 times two at once, every second time with the lease of a dead process there."""
    row = Row(
        "two writers start at once on one folder, every second time beside a stale lease",
        "one refused with one line and exit code 4, or nothing left for it; same tree",
    )
    for case in range(min(number, 20)):
        with _place() as name:
            out = Path(name) / "out"
            if case % 2 == 0:
                _leave_lease(out)
            command = stage().command(out)
            both = [start(command, cwd=out.parent) for _ in range(2)]
            ends = sorted((_finish(process) for process in both), key=lambda done: done.code)
            codes, last = [done.code for done in ends], ends[1].err.strip().splitlines()[-1:]
            refused = codes == [0, 4] and "writes part 1/1 of it now" in last[0]
            good = (refused or codes == [0, 0]) and stage().same(out)
            row.check(good, f"{codes} {last} {stage().differences(out)[:2]}")
    return row


def _leave_lease(out: Path) -> None:
    out.mkdir()
    code = "import sys, os, signal; from pathlib import Path; from pidm_reid import lease\n"
    code += "with lease.hold(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    killed = run(["-c", code, out], cwd=out, timeout=PATIENCE_S)
    if killed.code != -signal.SIGKILL or not (out / ".lease-01-of-01").is_file():
        raise RuntimeError(killed.err)


# ---------------------------------------------------------------- rot


def flipped_bits(number: int) -> Row:
    """One bit in each of five times as many generated files."""
    row, number = Row("one flipped bit in each output", "`verify` names each"), 5 * number
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        work = planned(make_market(Path(name) / "data"), ratio=1.0, per_image=-(-number // 36))
        render_all(work, out)
        if found := list(verify.faults(out)):
            row.wrong.append(f"before: {found[0]}")
        train = out / folder.BASE / folder.TRAIN
        names = random.Random(0).sample([recipe.file_name for recipe in work.recipes], number)
        for case, file in enumerate(names):
            data = bytearray((train / file).read_bytes())
            bit = random.Random(case).randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            (train / file).write_bytes(data)
        found = list(verify.faults(out))
        for file in names:
            row.check(any(file in line for line in found), f"{file} was not found")
        if len(found) != number:
            row.wrong.append(f"{len(found)} lines for {number} files")
    return row


MEASURES: tuple[Measure, ...] = (kills, full_disks, races, flipped_bits)
