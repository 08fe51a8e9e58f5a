"""Fresh images in every epoch: the bytes of an offline folder, in torchreid's loaders."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from people import TINT, data_manager, planned, render_all, tint

import pidm_reid
from pidm_core import UserError, load_image, sha256, write_keypoints
from pidm_reid import compat, folder, generators, pool
from pidm_reid.config import PlanPolicy
from pidm_reid.dataset import PIDMAugmentedDataset
from pidm_reid.plan import Recipe
from pidm_reid.pool import FreshLoader, Pool
from pidm_reid.synthesize import Generator

torchreid = compat.torchreid()
ROOT = Path(__file__).parents[1]
FACTORY = functools.partial(dataclasses.replace, TINT)  # what another process can be sent
EPOCHS, MOST = 3, 2


@pytest.fixture(scope="module")
def offline(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images of a folder with as many images as three epochs show."""
    out = tmp_path_factory.mktemp("offline") / "all"
    render_all(planned(market, per_image=EPOCHS * MOST), out)
    return out / "market1501/bounding_box_train"


@pytest.fixture
def augmented(market: Path, tmp_path: Path) -> Path:
    """Half of the made-up market with 27 tinted images: one or two of each of 18 sources."""
    render_all(planned(market, fill_to=45), tmp_path / "augmented")
    return tmp_path / "augmented"


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    for opened in pool._pools.values():
        opened.close()
    pool._pools.clear()
    assert not multiprocessing.active_children()


def open_pool(augmented: Path, render: Any = TINT, **options: Any) -> Pool:
    return pool._pools[pool.open_pool(augmented, render, **options)]


def offline_names(slots: list[str], epoch: int) -> dict[str, str]:
    """Slot -> the name of its image in a folder with many images of each source."""
    images = Counter(slot[:-8] for slot in slots)
    return {s: f"{s[:-8]}{int(s[-8:-4]) + epoch * images[s[:-8]]:04d}.jpg" for s in slots}


def shown(opened: Pool) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in opened.home.glob("*.jpg")}


def expected(opened: Pool, offline: Path, epoch: int) -> dict[str, bytes]:
    names = offline_names(list(folder.read_augmented(opened.augmented).synthetic), epoch)
    return {slot: (offline / name).read_bytes() for slot, name in names.items()}


# ---------------------------------------------------------------- which images


def test_replicas_do_not_depend_on_their_number(market: Path) -> None:
    def by_source(amount: int) -> dict[str, list[Recipe]]:
        made: dict[str, list[Recipe]] = {}
        for recipe in planned(market, per_image=amount).recipes:
            made.setdefault(recipe.source, []).append(recipe)
        return made

    many = by_source(40)  # more than there are poses: each has several turns
    assert len({recipe.pose for recipe in next(iter(many.values()))}) < 20
    for amount in (1, 2, 17):
        assert by_source(amount) == {source: made[:amount] for source, made in many.items()}


@pytest.mark.parametrize("background", [False, True])
def test_epochs_show_the_bytes_of_an_offline_folder(
    augmented: Path, offline: Path, background: bool
) -> None:
    opened = open_pool(augmented, FACTORY if background else TINT)
    opened.start(0, background=background)
    hashes = set()
    for epoch in range(EPOCHS):
        opened.begin(epoch)
        images = expected(opened, offline, epoch)
        assert len(images) == 27
        assert shown(opened) == images
        hashes |= {sha256(data) for data in images.values()}
    assert opened.distinct_images == len(hashes) > 2 * 27
    assert 0 < opened.swap_seconds < opened.wait_seconds
    assert opened.render_seconds > 0
    assert background or opened.render_seconds < opened.wait_seconds


@pytest.mark.parametrize(
    "policy",
    [PlanPolicy("balanced"), PlanPolicy(same_scale=1.3), PlanPolicy(source_policy="cameras")],
)
def test_a_policy_goes_on_as_the_same_plan_several_times_over(
    market: Path, tmp_path: Path, policy: PlanPolicy
) -> None:
    options: dict[str, Any] = {"fill_to": 45, "policy": policy}
    render_all(planned(market, **options), tmp_path / "augmented")
    render_all(planned(market, **options, times=EPOCHS), tmp_path / "offline")
    opened = open_pool(tmp_path / "augmented")
    opened.start(0, background=False)
    for epoch in range(EPOCHS):
        opened.begin(epoch)
        images = expected(opened, tmp_path / "offline/market1501/bounding_box_train", epoch)
        assert len(images) == 27
        assert shown(opened) == images


def test_comparing_poses_of_another_file_is_refused(market: Path, tmp_path: Path) -> None:
    poses = market / "market1501/market-annotation-train.csv"
    work = planned(market, poses=poses, policy=PlanPolicy(same_scale=1.3))
    render_all(work, tmp_path / "augmented")
    opened = open_pool(tmp_path / "augmented", keypoints=str(poses))
    with pytest.raises(UserError, match="on the fly knows one file only"):
        opened.start(0, background=False)


def test_a_selection_is_refused(augmented: Path) -> None:
    names = folder.read_ledger(augmented / folder.MANIFEST)
    lines = (folder.checked_line({"file_name": name, "kept": True}) for name in names)
    (augmented / folder.SELECTION).write_bytes(b"".join(lines))
    opened = open_pool(augmented)
    with pytest.raises(UserError, match="holds a selection"):
        opened.start(0, background=False)


def test_ledger_says_what_each_slot_held_in_each_epoch(augmented: Path, offline: Path) -> None:
    opened = open_pool(augmented)
    opened.start(0, background=False)
    for epoch in range(EPOCHS):
        opened.begin(epoch)
    ledger = folder.read_ledger(opened.home / "pool.jsonl")
    manifest = folder.read_ledger(offline.parents[1] / folder.MANIFEST)
    assert Counter(entry["epoch"] for entry in ledger.values()) == dict.fromkeys(range(EPOCHS), 27)
    for name, entry in ledger.items():
        slot, epoch = entry.pop("slot"), entry.pop("epoch")
        assert entry == manifest[name]
        assert offline_names([*shown(opened)], epoch)[slot] == name


def test_augmented_folder_is_left_as_it_was(augmented: Path) -> None:
    def content() -> dict[str, str]:
        files = [p for p in augmented.rglob("*") if p.is_file() and "pool" not in p.parts]
        return {str(path): sha256(path) for path in files}

    before = content()
    opened = open_pool(augmented)
    opened.start(0, background=False)
    for epoch in range(2):
        opened.begin(epoch)
    assert content() == before
    assert len(folder.read_augmented(augmented).synthetic) == 27


def test_bare_renderer_draws_at_the_size_of_the_folders_images(
    augmented: Path, offline: Path
) -> None:
    opened = open_pool(augmented, tint)
    opened.start(0, background=False)
    opened.begin(1)
    assert shown(opened) == expected(opened, offline, 1)


# ---------------------------------------------------------------- resumed, interrupted


def test_resumed_training_goes_on_at_its_epoch(augmented: Path, offline: Path) -> None:
    opened = open_pool(augmented)
    opened.start(0, background=False)
    for epoch in range(EPOCHS):
        opened.begin(epoch)
    number = opened.distinct_images
    assert open_pool(augmented, FACTORY()) is opened  # an equal renderer
    opened.close()
    with pytest.raises(UserError, match="is closed"):
        opened.begin(2)
    again = open_pool(augmented)
    again.start(2, background=False)
    assert again.distinct_images < number
    again.begin(2)
    assert shown(again) == expected(again, offline, 2)
    assert again.distinct_images == number


def test_what_a_killed_training_left_is_not_shown(augmented: Path, offline: Path) -> None:
    home = augmented / "pool"
    (home / ".next").mkdir(parents=True)
    (home / "pool.jsonl").write_text('{"torn')
    slots = folder.read_augmented(augmented).synthetic
    for name in slots[:9]:  # it was swapping
        (home / name).write_bytes(b"half")
        (home / ".next" / name).write_bytes(b"hal")
    (home / ".link").symlink_to("nowhere")
    opened = open_pool(augmented)
    assert shown(opened) == expected(opened, offline, 0)
    opened.start(0, background=False)
    opened.begin(1)
    assert shown(opened) == expected(opened, offline, 1)


def test_images_appear_all_at_once_or_not_at_all(augmented: Path, offline: Path) -> None:
    calls = []

    def failing(*batch: Any) -> np.ndarray:
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return tint(*batch)

    opened = open_pool(augmented, dataclasses.replace(TINT, render=failing))
    opened.start(0, background=False)
    opened.begin(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        opened.begin(1)
    assert shown(opened) == expected(opened, offline, 0)


# ---------------------------------------------------------------- inside torchreid


def manager(market: Path, augmented: Path, *, more: tuple[str, ...] = (), **options: Any) -> Any:
    name = f"fresh_{abs(hash(augmented))}"
    pidm_reid.register(name, augmented=augmented, render=TINT)
    pidm_reid.register(name, augmented=augmented, render=TINT)  # again: no error
    made = data_manager(market, [name, *more], **options)
    made.train_loader.dataset.transform = _pixels
    return made


def _pixels(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork of a threaded process
@pytest.mark.parametrize(
    ("sampler", "workers", "more"),
    [
        ("RandomSampler", 2, ()),
        ("RandomIdentitySampler", 0, ()),
        ("RandomDatasetSampler", 0, ()),
        ("RandomDomainSampler", 0, ()),
        ("RandomSampler", 0, ("market1501",)),  # a + b
    ],
)
def test_loaders_and_samplers_give_the_epochs_images(
    market: Path,
    augmented: Path,
    offline: Path,
    sampler: str,
    workers: int,
    more: tuple[str, ...],
) -> None:
    data = manager(market, augmented, more=more, train_sampler=sampler, workers=workers)
    plain = data.train_loader
    (opened,) = pidm_reid.fresh_each_epoch(data)
    loader = data.train_loader
    assert (len(loader), loader.dataset) == (len(plain), plain.dataset)
    assert loader.batch_size == plain.batch_size == 12
    for epoch in range(2):
        names = offline_names([*shown(opened)], epoch)
        synthetic = 0
        for batch in loader:
            for path, image in zip(batch["impath"], batch["img"], strict=True):
                if os.path.dirname(path) == str(opened.home):
                    file = offline / names[os.path.basename(path)]
                    assert np.array_equal(image.numpy(), load_image(file))
                    synthetic += 1
        assert synthetic > 3


def test_query_and_gallery_are_not_touched(market: Path, augmented: Path) -> None:
    data = PIDMAugmentedDataset(
        str(market), augmented=str(augmented), render=TINT, mode="query", verbose=False
    )
    with compat.quiet():
        original = compat.base_class("market1501")(root=str(market), verbose=False)
    assert (data.query, data.gallery) == (original.query, original.gallery)


def test_the_documented_code_runs_and_torchreids_engine_trains_on_it(
    market: Path, augmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/market1501").symlink_to(market / "market1501")
    Path("data/market1501_pidm40").symlink_to(augmented)
    monkeypatch.setattr(generators, "pidm", lambda run, **_: {"runs/market1501": TINT}[run])
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/on_the_fly.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    with compat.quiet():
        exec(code, names)
        data, opened = names["manager"], names["pool"]
        assert isinstance(data.train_loader, FreshLoader)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 128 * 64, 6))
        engine = torchreid.engine.ImageSoftmaxEngine(
            data, model, torchreid.optim.build_optimizer(model), use_gpu=False
        )
        for engine.epoch in range(2):
            engine.max_epoch = 2
            engine.train()
    assert opened.distinct_images > 27
    assert data.train_loader.epoch == 2


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("render", "message"),
    [
        (functools.partial(int, "x"), r"failed \(ValueError: invalid literal"),
        (functools.partial(os._exit, 9), r"ended by itself \(exit code 9\)"),
        (lambda: TINT, "cannot be sent to the background process"),
        (functools.partial(dataclasses.replace, TINT, fingerprint="b"), "renderer: tint 1 -> b"),
    ],
)
def test_background_that_cannot_start_is_one_clear_error(
    augmented: Path, render: Any, message: str
) -> None:
    opened = open_pool(augmented, render)
    with pytest.raises(UserError, match=message):
        opened.start(0, background=True)


def test_failure_while_rendering_reaches_the_training(augmented: Path) -> None:
    opened = open_pool(augmented, functools.partial(dataclasses.replace, TINT, render=max))
    opened.start(0, background=True)
    opened.begin(0)
    with pytest.raises(UserError, match=r"rendering in the background failed \(ValueError"):
        opened.begin(1)


def test_background_ends_with_a_killed_training(augmented: Path) -> None:
    script = (
        "import functools, dataclasses, os, signal, people; from pidm_reid import pool\n"
        "if __name__ == '__main__':\n"
        "    make = functools.partial(dataclasses.replace, people.TINT)\n"
        f"    from pathlib import Path; p = Path({str(augmented)!r})\n"
        "    opened = pool._pools[pool.open_pool(p, make)]; opened.start(0, background=True)\n"
        "    print(opened._background.process.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, check=False
    )
    assert ran.returncode == -signal.SIGKILL
    limit = time.monotonic() + 20
    while _runs(int(ran.stdout)):
        assert time.monotonic() < limit
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (dataclasses.replace(TINT, fingerprint="tint 2"), "renderer: tint 1 -> tint 2"),
        (dataclasses.replace(TINT, settings={"steps": 9}), "settings.steps: 3 -> 9"),
    ],
)
def test_another_renderer_than_the_folders_is_refused(
    augmented: Path, generator: Generator, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_pool(augmented, generator).start(0, background=False)


def test_folder_that_would_be_planned_otherwise_today_is_refused(
    augmented: Path, tmp_path: Path
) -> None:
    joints = tmp_path / "data.csv"
    names = folder.read_augmented(augmented).real
    write_keypoints(joints, {name: np.full((18, 2), 9, np.float32) for name in names})
    opened = open_pool(augmented, keypoints=str(joints))
    with pytest.raises(UserError, match=r"would be planned otherwise today; .*data\.csv"):
        opened.start(0, background=False)


def test_pool_of_another_training_and_other_folders_are_refused(
    augmented: Path, tmp_path: Path
) -> None:
    opened = open_pool(augmented)
    opened.close()
    with (opened.home / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        pool._pools.clear()
        with pytest.raises(UserError, match="another training uses this pool"):
            open_pool(augmented)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").touch()
    with pytest.raises(UserError, match="something else than a pool"):
        open_pool(augmented, home=str(tmp_path / "thesis"))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/.lock").touch()  # before its ledger was written
    open_pool(augmented, home=str(tmp_path / "killed"))


def test_a_closed_pool_is_free_although_loader_workers_live(augmented: Path) -> None:
    opened, fork = open_pool(augmented), multiprocessing.get_context("fork")
    reads, writes = fork.Pipe(duplex=False)
    worker = fork.Process(target=reads.recv, daemon=True)  # has the file of the lock open
    worker.start()
    opened.close()
    pool._pools.clear()
    open_pool(augmented)
    writes.send(None)
    worker.join()


def test_sources_that_are_not_there_are_named(augmented: Path) -> None:
    for image in (augmented / "market1501/bounding_box_train").iterdir():
        if "_pidm" not in image.name:
            image.unlink()
    opened = open_pool(augmented)
    with pytest.raises(UserError, match="its real images are not there"):
        opened.start(0, background=False)


def test_manager_without_a_pool_is_refused(market: Path) -> None:
    with compat.quiet():
        plain = torchreid.data.ImageDataManager(
            root=str(market), sources="market1501", batch_size_train=4, workers=0, use_gpu=False
        )
    with pytest.raises(UserError, match="no training image comes from a pool"):
        pidm_reid.fresh_each_epoch(plain)
