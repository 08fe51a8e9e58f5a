"""Fresh generated images in every epoch: a rolling pool of ordinary files, swapped between epochs.

An augmented folder stays as it is. In its pool/ lies a file for each synthetic image, under the
same name (its slot), at first a link to it. Before epoch e > 0 all of them are replaced by those
that the folder's plan would give next: of a source with N images the replicas e*N ... e*N + N-1.
So epochs 0 ... E-1 show, byte for byte, the images of the same plan E times over.
Data sets, samplers and workers see files like any others, and none changes within an epoch.

pool/pool.jsonl    ledger: slot and epoch, and what a manifest says, of every image of a training;
                   the next one keeps the epochs before the one that it begins with
pool/.next         where the next epoch is rendered; no training reads there
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from pidm_core import (
    BAD_DATA,
    ENVIRONMENT,
    INTERNAL,
    Sampling,
    UserError,
    find_keypoints,
    from_dict,
    load_image,
    read_keypoints,
    sha256,
    write_bytes,
)
from pidm_reid import folder, generators, plan, synthesize
from pidm_reid.config import PlanPolicy
from pidm_reid.synthesize import Generator, Render, Work, in_one_frame

Renders = Render | Generator | str | Callable[[], Generator]
"""A renderer; one with its name; a run folder or bundled model; or, in the background, a function
of a module that makes a Generator (CUDA's state cannot be sent to another process)."""
Painted = tuple[list[dict[str, Any]], float]
"""Ledger entries of an epoch's images, with slot and epoch, and the seconds they took."""

LEDGER = "pool.jsonl"
_pools: dict[str, Pool] = {}


class FreshLoader:
    """A data loader whose every `iter()` is an epoch and swaps the images of its pools first.

    Whatever else is asked of it is the loader's own.
    """

    def __init__(self, loader: Any, pools: list[Pool], *, start_epoch: int) -> None:
        self.loader, self.pools, self.epoch = loader, pools, start_epoch

    def __iter__(self) -> Iterator[Any]:
        for pool in self.pools:
            pool.begin(self.epoch)
        self.epoch += 1
        return iter(self.loader)  # not earlier: its workers read ahead

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "loader"), name)


def fresh_each_epoch(manager: Any, *, start_epoch: int = 0, background: bool = False) -> list[Pool]:
    """Give a torchreid data manager new generated images in every epoch; returns its pools.

    To be called before the engine is made, which keeps the manager's loader. With `background`
    another process renders the next epoch's images while this one trains. `start_epoch` is where
    a resumed training goes on.
    Raises UserError if no data set of the manager has `render`, or if it cannot go on with the
    plan and the renderer of its augmented folder.
    """
    loader = manager.train_loader
    loader = loader.loader if isinstance(loader, FreshLoader) else loader
    homes = {os.path.dirname(item[0]) for item in loader.dataset.train}  # a sum keeps only paths
    pools = [_pools[home] for home in sorted(homes) if home in _pools]
    if not pools:
        raise UserError("no training image comes from a pool; register the data set with render=…")
    for pool in pools:
        pool.start(start_epoch, background=background)
    manager.train_loader = FreshLoader(loader, pools, start_epoch=start_epoch)
    return pools


def open_pool(augmented: Path, render: Renders, *, home: str = "", keypoints: str = "") -> str:
    """Make the pool of an augmented folder (`home`: elsewhere than in its pool/); its path."""
    path = os.path.abspath(home or augmented / "pool")
    old = _pools.get(path)
    same = old and (old.augmented, old.render, old.keypoints) == (augmented, render, keypoints)
    if old and same and not old.closed:
        return path
    if old:
        old.close()
    _pools[path] = Pool(augmented, render, home=Path(path), keypoints=keypoints)
    return path


# ---------------------------------------------------------------- the files


class Pool:
    """The files that stand for an augmented folder's synthetic images while a network trains."""

    def __init__(self, augmented: Path, render: Renders, *, home: Path, keypoints: str) -> None:
        self.augmented, self.render, self.home, self.keypoints = augmented, render, home, keypoints
        self.render_seconds = 0.0  # spent on rendering, here or in the background
        self.wait_seconds = 0.0  # the training stood still: rendering or waiting for it, swapping
        self.swap_seconds = 0.0
        self._seen: set[str] = set()
        self._paint: Callable[[int], Painted] | None = None
        self._background: _Background | None = None
        visible = home.is_dir() and any(not path.name.startswith(".") for path in home.iterdir())
        if visible and not (home / LEDGER).is_file():
            raise UserError(f"{home}: holds something else than a pool; give another pool=DIR")
        home.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(home)
        atexit.register(self.close)
        folder.append_ledger(home / LEDGER, [])
        self._link()

    @property
    def closed(self) -> bool:
        """Whether others may use its files."""
        return bool(self._lock.closed)

    @property
    def distinct_images(self) -> int:
        """Different generated images shown so far, those before `start_epoch` included."""
        return len(self._seen)

    def start(self, epoch: int, *, background: bool) -> None:
        """Make ready to begin with `epoch`, whatever an earlier training has left."""
        if self.closed:
            raise UserError(f"{self.home}: is closed; make or register the data set anew")
        self._stop()
        before: dict[str, bytes] = {}  # lines take less memory than entries
        self._seen = set()
        for entry in folder.ledger_entries(self.home / LEDGER):
            if entry["epoch"] < epoch:
                before[entry["file_name"]] = folder.checked_line(entry)
                self._seen.add(entry["sha256"])
        write_bytes(self.home / LEDGER, b"".join(before.values()))
        self.render_seconds = self.wait_seconds = self.swap_seconds = 0.0
        out = self.home / ".next"
        if background:
            self._background = _Background(self.augmented, self.keypoints, self.render, out)
            self._paint = self._background.paint
        else:
            succession = Succession(self.augmented, self.keypoints)
            generator = succession.generator(self.render, background=False)
            self._paint = partial(succession.paint, generator=generator, out=out)

    def begin(self, epoch: int) -> None:
        """Show the images of `epoch`, rendering or waiting for them if need be."""
        if self._paint is None:
            raise UserError(f"{self.home}: is closed; make or register the data set anew")
        begin = time.perf_counter()
        entries, seconds = self._paint(epoch) if epoch else ([], 0.0)
        painted = time.perf_counter()
        for entry in entries:
            os.replace(self.home / ".next" / entry["slot"], self.home / entry["slot"])
        entries = entries or self._link()
        folder.append_ledger(self.home / LEDGER, entries)
        self._seen |= {entry["sha256"] for entry in entries}
        self.render_seconds += seconds
        self.swap_seconds += time.perf_counter() - painted
        self.wait_seconds += time.perf_counter() - begin
        if self._background is not None:
            self._background.order(epoch + 1)

    def close(self) -> None:
        """End the background process, remove what it has begun, leave the pool to others."""
        self._stop()
        _unlock(self._lock)
        atexit.unregister(self.close)

    def _stop(self) -> None:
        if self._background is not None:
            self._background.close()
        self._paint = self._background = None
        shutil.rmtree(self.home / ".next", ignore_errors=True)

    def _link(self) -> list[dict[str, Any]]:
        """Show epoch 0, the augmented folder's own images; their entries."""
        ledger = folder.read_ledger(self.augmented / folder.MANIFEST)
        for name in ledger:
            link = self.home / ".link"
            link.unlink(missing_ok=True)
            folder.place(self.augmented / folder.BASE / folder.TRAIN / name, link, copy=False)
            os.replace(link, self.home / name)
        return [{**entry, "slot": name, "epoch": 0} for name, entry in ledger.items()]


def _lock(home: Path) -> Any:
    import fcntl

    file = folder.open_own(home / ".lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{home}: another training uses this pool; give pool=DIR") from error
    except OSError:
        pass  # a file system without locks
    return file


def _unlock(file: Any) -> None:
    """Free it in the loader workers too, which have it open as long as they live."""
    import fcntl

    with contextlib.suppress(OSError, ValueError):  # without locks, or closed before
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


# ---------------------------------------------------------------- the plan, continued


class Succession:
    """Which image each slot of an augmented folder shows in which epoch.

    Raises UserError (BAD_DATA) if today's sources and joints do not give the folder's own plan.
    """

    def __init__(self, root: Path, keypoints: str = "") -> None:
        augmented = folder.read_augmented(root, verify=False)
        kept = set(augmented.real)
        real = [record for record in folder.read_people(root) if record.name in kept]
        if not real:
            raise UserError(
                f"{root}: its real images are not there; if the data set was moved, the same "
                "tools/synthesize.py command finds them again",
                BAD_DATA,
            )
        self.root, self.split = root, augmented.split
        self.manifest = folder.read_ledger(root / folder.MANIFEST)
        lines = folder.read_lines(root / folder.PLAN)
        planned = {name: str(line.get("source")) for name, line in lines.items()}
        if folder.was_selected(root, self.split):
            raise UserError(
                f"{root}: holds a selection, and images that nobody chose would take its place; "
                "give the folder as tools/synthesize.py made it"
            )
        if not self.manifest or not self.manifest.keys() <= planned.keys():
            raise UserError(f"{root}: no generated images, or others than its plan's", BAD_DATA)
        self.images = Counter(planned.values())
        self.content = {record.name: sha256(record.path) for record in real}
        # the folder of the originals, where the links lead
        path = keypoints or str(find_keypoints(real[0].path.resolve().parent.parent))
        external = self.split["poses"] == "external"
        if external and not keypoints:
            raise UserError(f"{root}: its poses are of another file; give keypoints=FILE")
        size = load_image(real[0].path).shape[:2] if external else None
        keypoints_of = read_keypoints(path, size=size)
        poses = plan.pose_pool(keypoints_of, among=None if external else self.content, where=path)
        where = f"{root / folder.SPLIT}: policy."
        self.policy, self.bodies = from_dict(PlanPolicy, self.split.get("policy", {}), where), None
        if self.policy.compares_poses:
            if external:
                raise UserError(
                    f"{root}: planned by a policy that compares poses of another file with those "
                    "of the sources; on the fly knows one file only"
                )
            self.bodies = in_one_frame(real, keypoints_of)
        nothing = plan.make_recipes(real, poses, content=self.content, seed=self.split["seed"])
        self.work = Work(real, nothing, poses, self.split, [])
        self.path = path
        for slot, recipe in self.recipes(0).items():
            if any(self.manifest[slot].get(key) != value for key, value in vars(recipe).items()):
                raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"{self.root}: would be planned otherwise today; sources or {self.path} have changed "
            "since the folder was made",
            BAD_DATA,
        )

    def recipes(self, epoch: int) -> dict[str, plan.Recipe]:
        """By slot: of a source with N images the replicas from epoch*N on."""
        made = plan.make_recipes(
            self.work.real,
            self.work.poses,
            content=self.content,
            seed=self.split["seed"],
            fill_to=len(self.work.real) + self.images.total(),
            times=epoch + 1,
            policy=self.policy,
            bodies=self.bodies,
        )
        numbered = {(recipe.source, recipe.replica): recipe for recipe in made}
        replicas = {
            slot: (entry["source"], entry["replica"] + epoch * self.images[entry["source"]])
            for slot, entry in sorted(self.manifest.items())
        }
        if not numbered.keys() >= set(replicas.values()):
            raise self._changed()
        return {slot: numbered[replica] for slot, replica in replicas.items()}

    def generator(self, render: Renders, *, background: bool) -> Generator:
        """The renderer, which must be the one that made the folder, unless it has no name."""
        if isinstance(render, str):
            names = {field.name for field in fields(Sampling)}
            given = {k: v for k, v in self.split["settings"].items() if k in names}
            saw = self.split["generator_saw"]
            made = generators.pidm(render, sampling=Sampling(**given), saw=saw)
        elif isinstance(render, Generator):
            made = render
        elif not background:
            image = self.root / folder.BASE / folder.TRAIN / next(iter(self.manifest))
            size = load_image(image).shape[:2]
            made = Generator(cast(Render, render), "a callable", {}, size=size)
            return replace(made, mark=self.split.get("marked", False))
        else:
            made = cast(Callable[[], Generator], render)()
        old = {key: self.split[key] for key in ("renderer", "settings")}
        new = {"renderer": made.fingerprint, "settings": dict(made.settings)}
        if changes := folder.differences(old, new):
            raise UserError(f"{self.root}: was rendered otherwise ({'; '.join(changes)})")
        return replace(made, mark=self.split.get("marked", False))

    def paint(
        self,
        epoch: int,
        *,
        generator: Generator,
        out: Path,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Painted:
        """Write an epoch's images by slot into an emptied folder, while they are wanted."""
        begin = time.perf_counter()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        recipes = self.recipes(epoch)
        slots = {recipe.file_name: slot for slot, recipe in recipes.items()}

        def keep(files: synthesize.Files) -> list[dict[str, Any]]:
            for recipe, data in files:  # unsynced: after a crash all is made anew
                (out / slots[recipe.file_name]).write_bytes(data)
            entries = [synthesize.ledger_entry(recipe, generator, data) for recipe, data in files]
            return [
                {**entry, "slot": slots[entry["file_name"]], "epoch": epoch} for entry in entries
            ]

        entries = []
        for batch in synthesize.draw(list(recipes.values()), self.work, generator, keep):
            if not wanted():
                raise EOFError
            entries += batch
        return entries, time.perf_counter() - begin


# ---------------------------------------------------------------- in the background


class _Background:
    """Renders in a process of its own, one epoch ahead of the training."""

    def __init__(self, root: Path, keypoints: str, render: Renders, out: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a forked one could not use CUDA
        self.connection, theirs = context.Pipe()
        self.ordered = 0
        self.process = context.Process(
            target=_serve, args=(root, keypoints, render, out, theirs), daemon=True
        )
        try:
            self.process.start()
        except Exception as error:  # pickle raises several kinds
            raise UserError(
                f"render cannot be sent to the background process ({error}); give the name of a "
                "run folder, or a function of a module that makes a Generator"
            ) from error
        theirs.close()  # or its end would not be seen
        self._answer()

    def order(self, epoch: int) -> None:
        self.ordered = epoch
        with contextlib.suppress(OSError):  # it has ended: the answer will say why
            self.connection.send(epoch)

    def paint(self, epoch: int) -> Painted:
        if self.ordered != epoch:
            self.order(epoch)
        return cast(Painted, self._answer())

    def close(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise UserError(
                f"the background process ended by itself (exit code {self.process.exitcode}): out "
                "of memory? or is the training script not under `if __name__ == '__main__':`?",
                ENVIRONMENT,
            ) from error
        if isinstance(answer, UserError):
            self.process.join()
            raise answer
        return answer


def _serve(root: Path, keypoints: str, render: Renders, out: Path, connection: Any) -> None:
    """The background process: renders the epochs that it is asked for while its parent lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which ends us
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        succession = Succession(root, keypoints)
        generator = succession.generator(render, background=True)
        connection.send("ready")
        while True:
            epoch = connection.recv()
            painted = succession.paint(epoch, generator=generator, out=out, wanted=parent.is_alive)
            connection.send(painted)
    except (EOFError, ConnectionError):  # the training has ended
        return
    except UserError as error:
        connection.send(error)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        connection.send(UserError(f"rendering in the background failed ({why})", INTERNAL))
