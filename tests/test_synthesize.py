"""Plan + renderer -> folder: what lies in it, that it resumes, and that it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from people import TINT, draw_person, joints, make_market, planned, render_all, standing, tint

from pidm_core import (
    BAD_DATA,
    USAGE,
    UserError,
    encode_jpeg,
    encode_png,
    load_image,
    rescale,
    write_bytes,
    write_keypoints,
)
from pidm_reid import folder, imported, leaks, synthesize
from pidm_reid.config import PlanPolicy
from pidm_reid.synthesize import Generator, Work
from pidm_reid.verify import faults


def files(out: Path) -> dict[str, bytes]:
    train = out / "market1501/bounding_box_train"
    return {path.name: path.read_bytes() for path in train.iterdir()}


def test_folder_is_a_market1501_root_of_the_full_size(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = planned(market)
    assert render_all(work, out) == len(work.recipes) == 18
    records = folder.read_people(out)
    assert len(records) == 36
    assert {record.pid for record in records} == {2, 4, 6, 8, 10, 12}
    for subset in ("query", "bounding_box_test"):
        theirs, ours = folder.read_people(market, subset), folder.read_people(out, subset)
        assert [r.name for r in theirs] == [r.name for r in ours]
    for spelling in ("market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15"):
        assert len(list((out / spelling / "bounding_box_train").iterdir())) == 36


def test_split_plan_and_ledger_say_how_it_was_made(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path)
    split = json.loads((tmp_path / "split.json").read_text())
    assert (split["ratio"], split["seed"], split["full_images"]) == (0.5, 0, 36)
    assert split["real"] == [record.name for record in work.real]
    rows = [json.loads(line) for line in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert rows == [vars(recipe) for recipe in work.recipes]
    first = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])
    assert next(iter(first)) == "file_name"
    assert (first["renderer"], first["settings"], first["role"]) == (
        "tint 1",
        {"steps": 3},
        "train",
    )


def test_an_image_is_what_the_renderer_makes_of_source_pose_and_seed(
    market: Path, tmp_path: Path
) -> None:
    work = planned(market)
    render_all(work, tmp_path)
    recipe = work.recipes[7]
    paths = {record.name: record.path for record in work.real}
    pose = work.poses.keypoints[recipe.pose]
    expected = tint(load_image(paths[recipe.source])[None], pose[None], [recipe.seed])[0]
    found = load_image(tmp_path / "market1501/bounding_box_train" / recipe.file_name)
    assert np.abs(expected.astype(int) - found).mean() < 3  # JPEG


def test_batches_are_always_full(market: Path, tmp_path: Path) -> None:
    sizes = []

    def render(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        sizes.append((len(sources), len(keypoints), len(seeds)))
        return tint(sources, keypoints, seeds)

    render_all(planned(market), tmp_path, dataclasses.replace(TINT, render=render))
    assert set(sizes) == {(4, 4, 4)}


def test_sources_and_joints_are_scaled_to_the_renderers_size(market: Path, tmp_path: Path) -> None:
    seen = []

    def render(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        seen.append(keypoints[0])
        return sources

    work = planned(market)
    render_all(work, tmp_path, dataclasses.replace(TINT, render=render, size=(32, 16)))
    np.testing.assert_allclose(
        (seen[0] + 0.5) * 2 - 0.5, work.poses.keypoints[work.recipes[0].pose], atol=1e-5
    )
    name = tmp_path / "market1501/bounding_box_train" / work.recipes[0].file_name
    assert load_image(name).shape == (32, 16, 3)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_run_goes_on_to_the_same_bytes(
    market: Path, tmp_path: Path, after: int
) -> None:
    work = planned(market)
    render_all(work, tmp_path / "straight")
    todo = synthesize.start(work, TINT, tmp_path / "broken")
    batches = synthesize.synthesize(todo, work, TINT, tmp_path / "broken")
    for _ in range(after):
        next(batches)
    batches.close()
    with (tmp_path / "broken/manifest.jsonl").open("ab") as file:
        file.write(b'{"file_name": "torn')
    assert render_all(work, tmp_path / "broken") == 18 - 4 * (after + 1)  # one was drawn ahead
    assert files(tmp_path / "broken") == files(tmp_path / "straight")
    assert render_all(work, tmp_path / "broken") == 0


def test_a_batch_is_kept_while_the_next_is_drawn(market: Path) -> None:
    work, second_drawn, batches = planned(market), threading.Event(), []

    def render(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        batches.append(seeds)
        if len(batches) == 2:
            second_drawn.set()
        return sources

    def keep(files: synthesize.Files) -> int:
        assert second_drawn.wait(20)  # for ever, if one came after the other
        return len(files)

    generator = dataclasses.replace(TINT, render=render)
    assert list(synthesize.draw(work.recipes, work, generator, keep)) == [4, 4, 4, 4, 2]


def test_what_cannot_be_kept_ends_the_drawing(market: Path) -> None:
    def keep(files: synthesize.Files) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        list(synthesize.draw(planned(market).recipes, planned(market), TINT, keep))


def test_changed_or_lost_image_is_made_anew(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path)
    before = files(tmp_path)
    train = tmp_path / "market1501/bounding_box_train"
    (train / work.recipes[0].file_name).unlink()
    (train / work.recipes[1].file_name).write_bytes(b"")
    assert render_all(work, tmp_path) == 2
    assert files(tmp_path) == before


def test_an_image_remade_by_other_writers_is_good(market: Path, tmp_path: Path) -> None:
    """The line of the part that made it first comes later, and its image is no more."""
    work = planned(market)
    for k in (1, 2):
        render_all(work, tmp_path, shard=(k, 2))
    train = tmp_path / "market1501/bounding_box_train"

    def elsewhere(*inputs: Any) -> np.ndarray:  # another device: not the same pixels
        return np.asarray(TINT.render(*inputs) ^ 1)

    (train / work.recipes[0].file_name).unlink()
    assert render_all(work, tmp_path, dataclasses.replace(TINT, render=elsewhere)) == 1
    assert render_all(work, tmp_path) == 0
    assert folder.read_augmented(tmp_path).missing == 0
    (train / work.recipes[0].file_name).unlink()
    assert render_all(work, tmp_path, shard=(1, 2)) == 1
    assert folder.read_augmented(tmp_path).missing == 0


def test_a_moved_data_set_is_found_again(tmp_path: Path) -> None:
    made = make_market(tmp_path / "here")
    out = tmp_path / "out"
    render_all(planned(made), out)
    made.rename(tmp_path / "there")
    assert any("a link to nowhere" in fault for fault in faults(out))
    assert render_all(planned(tmp_path / "there"), out) == 0
    assert not list(faults(out))


def test_folders_by_patns_names_have_query_and_gallery_too(tmp_path: Path) -> None:
    home = make_market(tmp_path / "people") / "market1501"
    (home / "bounding_box_train").rename(home / "train")
    (home / "bounding_box_test").rename(home / "test")
    render_all(planned(tmp_path / "people"), tmp_path / "out")
    for subset in ("query", "bounding_box_test"):
        theirs = folder.read_people(tmp_path / "people", subset)
        assert [r.name for r in folder.read_people(tmp_path / "out", subset)] == [
            r.name for r in theirs
        ]


def test_shards_together_are_the_whole(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path / "straight")
    counts = [render_all(work, tmp_path / "parts", shard=(k, 3)) for k in (2, 3, 1)]
    assert counts == [6, 6, 6]
    assert files(tmp_path / "parts") == files(tmp_path / "straight")


@pytest.mark.parametrize(
    ("changes", "generator", "message"),
    [
        ({"seed": 1}, TINT, "seed: 0 -> 1"),
        ({"per_image": 2}, TINT, "recipes: 18 -> 36"),
        ({"per_image": 2}, TINT, "plan: other images (seed, ratio, per-image, fill-to, poses or"),
        ({}, dataclasses.replace(TINT, fingerprint="ab" * 32), "renderer: tint 1 -> abababab…)"),
        ({}, dataclasses.replace(TINT, fingerprint="tint 2"), "renderer: tint 1 -> tint 2"),
        ({}, dataclasses.replace(TINT, settings={"steps": 9}), "settings.steps: 3 -> 9"),
    ],
)
def test_changed_configuration_is_refused_with_the_differences(
    market: Path, tmp_path: Path, changes: dict[str, Any], generator: Generator, message: str
) -> None:
    render_all(planned(market), tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match="another configuration") as error:
        render_all(planned(market, **changes), tmp_path, generator)
    assert message in str(error.value)
    assert files(tmp_path) == before


def test_foreign_folder_and_the_data_set_itself_are_refused(market: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="not an augmented folder"):
        render_all(planned(market), tmp_path)
    with pytest.raises(UserError, match="the data set itself"):
        render_all(planned(market), market)


def test_links_are_replaced_by_copies_on_request(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path / "out")
    images = tmp_path / "out/market1501/bounding_box_train"
    assert any(path.is_symlink() for path in images.iterdir())
    assert render_all(work, tmp_path / "out", copy=True) == 0
    query = tmp_path / "out/market1501/query"
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    for record in work.real:
        assert (images / record.name).read_bytes() == record.path.read_bytes()
    assert len(list(query.iterdir())) == len(list((market / "market1501/query").iterdir()))


def test_a_folder_beside_the_images_that_links_lead_to_is_no_data_set(tmp_path: Path) -> None:
    market = make_market(tmp_path / "data")
    home = market / "market1501/bounding_box_train"
    home.rename(tmp_path / "flat")
    home.mkdir()
    for path in (tmp_path / "flat").iterdir():
        (home / path.name).symlink_to(path)
    assert render_all(planned(market), tmp_path / "made") == 18
    with pytest.raises(UserError, match="is the data set itself"):
        render_all(planned(market), market / "market1501/made")


def test_a_split_of_another_kind_is_refused_in_one_line(market: Path, tmp_path: Path) -> None:
    (tmp_path / folder.SPLIT).write_text("[]")
    with pytest.raises(UserError, match="another configuration"):
        folder.start_folder(tmp_path, synthesize.describe(planned(market), TINT))


def test_a_shard_that_comes_second_takes_the_split_of_the_first(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment between its looks at the folder the first one writes it."""
    split = synthesize.describe(planned(market), TINT)
    is_file, looks = Path.is_file, 0

    def meanwhile(path: Path, **options: Any) -> bool:
        nonlocal looks
        answer = bool(is_file(path, **options))
        if path.name == folder.SPLIT and (looks := looks + 1) == 1:
            folder.start_folder(path.parent, split)
        return answer

    monkeypatch.setattr(Path, "is_file", meanwhile)
    folder.start_folder(tmp_path, split)
    assert looks > 2
    assert folder.read_split(tmp_path) == split


def test_copies_need_no_links(market: Path, tmp_path: Path) -> None:
    render_all(planned(market), tmp_path, copy=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert len(folder.read_people(tmp_path, "query")) == len(folder.read_people(market, "query"))


# ---------------------------------------------------------------- marks


def test_generated_images_say_so_and_their_pixels_do_not_change(
    market: Path, tmp_path: Path
) -> None:
    work, plain = planned(market), dataclasses.replace(TINT, mark=False)
    render_all(work, tmp_path / "marked")
    render_all(work, tmp_path / "plain", plain)
    with pytest.raises(UserError, match="marked: True -> None"):
        render_all(work, tmp_path / "marked", plain)
    for recipe in work.recipes:
        marked, bare = (
            tmp_path / kind / "market1501/bounding_box_train" / recipe.file_name
            for kind in ("marked", "plain")
        )
        assert b"digitalsourcetype/trainedAlgorithmicMedia" in marked.read_bytes()
        assert b"xmp" not in bare.read_bytes()
        assert (load_image(marked) == load_image(bare)).all()


def test_the_manifest_tells_what_made_an_image_and_nothing_of_the_machine(
    market: Path, tmp_path: Path
) -> None:
    render_all(planned(market), tmp_path)
    for name in (folder.MANIFEST, folder.PLAN, folder.SPLIT):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in text
        assert str(market) not in text
        assert socket.gethostname() not in text
    entry = next(iter(folder.read_ledger(tmp_path / folder.MANIFEST).values()))
    assert entry.keys() == {
        "file_name", "source", "source_sha256", "pose", "pose_sha256", "replica", "seed", "role",
        "settings", "renderer", "marked", "version", "sha256",
    }  # fmt: skip


# ---------------------------------------------------------------- many images


def test_recipes_of_a_part_know_their_places(market: Path) -> None:
    recipes = planned(market, per_image=3).recipes
    part = recipes[1::4]
    assert [part.index_of(recipe.file_name) for recipe in part] == list(range(len(part)))
    assert part.index_of(recipes[0].file_name) is None
    assert list(part[2:5]) == [recipes[k] for k in (9, 13, 17)]
    stem = recipes[0].file_name.removesuffix("0000.jpg")
    for name in (f"{stem}0003.jpg", f"{stem}x.jpg", "0009_c1_pidm0000.jpg", "a"):
        assert recipes.index_of(name) is None


SCAN = """
import resource, sys, time
from pathlib import Path
import numpy as np
from pidm_core import Record, sha256
from pidm_reid import folder, plan, synthesize
sources, each, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
names = [f"{k:05d}_c1s1_000000_00.jpg" for k in range(sources)]
joints = np.random.default_rng(0).integers(4, 60, (1000, 18, 2)).astype(np.float32)
pool = plan.pose_pool({f"{k}.jpg": pose for k, pose in enumerate(joints)}, where="")
records = [Record(Path(name), name, k + 1, 1) for k, name in enumerate(names)]
content = {name: sha256(name.encode()) for name in names}
recipes = plan.make_recipes(records, pool, content=content, seed=0, per_image=each)
sha256(plan.write_recipes(recipes))
generator, finished = synthesize.Generator(None, "none", {"steps": 3}), int(sys.argv[4])
train, data = out / folder.BASE / folder.TRAIN, bytes(range(256)) * 12
train.mkdir(parents=True)
for first in range(0, finished, 1000):
    batch = list(recipes[first : first + 1000])
    for recipe in batch:
        (train / recipe.file_name).write_bytes(data)
    entries = [synthesize.ledger_entry(recipe, generator, data) for recipe in batch]
    folder.append_ledger(out / folder.MANIFEST, entries)
begin, cpu = time.perf_counter(), time.process_time()
todo = synthesize.missing(recipes, generator, out)
took, cpu = time.perf_counter() - begin, time.process_time() - cpu
assert len(todo) == len(recipes) - finished
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(len(recipes), peak, took, cpu)
"""


@pytest.mark.slow
def test_ten_million_recipes_take_little_memory_and_finished_images_are_scanned_fast(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SCAN, "12500", "800", str(tmp_path), "100000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    recipes, peak_mib, _, cpu_s = map(float, done.stdout.split())
    assert recipes == 10_000_000
    assert peak_mib < 500
    assert cpu_s < 10  # for 100,000 finished images; of this process, whatever else runs


# ---------------------------------------------------------------- bad input


def test_broken_images_are_left_out_and_listed(tmp_path: Path) -> None:
    market = make_market(tmp_path / "data: mine")
    train = market / "market1501/bounding_box_train"
    names = sorted(path.name for path in train.iterdir())
    (train / names[0]).write_bytes(b"")
    (train / names[8]).write_bytes((train / names[8]).read_bytes()[:200])
    (train / names[5]).unlink()
    (train / names[5]).mkdir()
    work = planned(market, ratio=1.0, per_image=1)
    assert len(work.real) == 33
    assert names[5] in work.broken[0]
    assert names[0] in work.broken[1]
    assert "empty" in work.broken[1]
    assert work.split["broken"] == [names[5], names[0], names[8]]
    render_all(work, tmp_path / "out")
    assert not {names[0], names[8]} & set(files(tmp_path / "out"))


def test_two_images_whose_names_differ_in_their_ending_are_refused(tmp_path: Path) -> None:
    market = make_market(tmp_path)
    first = sorted((market / "market1501/bounding_box_train").iterdir())[0]
    first.with_suffix(".png").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=f"{first.stem}.* differ in their ending alone") as error:
        planned(market, ratio=1.0, per_image=1)
    assert error.value.code == BAD_DATA


def test_many_broken_images_stop_the_work(tmp_path: Path) -> None:
    market = make_market(tmp_path)
    for path in sorted((market / "market1501/bounding_box_train").iterdir())[:11]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="11 of 36 images are broken") as error:
        planned(market, ratio=1.0)
    assert error.value.code == BAD_DATA


def test_generated_images_are_no_sources(market: Path, tmp_path: Path) -> None:
    render_all(planned(market), tmp_path)
    with pytest.raises(UserError, match="holds 18 generated images"):
        planned(market, data=tmp_path)


def test_poses_may_come_from_another_file(market: Path, tmp_path: Path) -> None:
    write_keypoints(tmp_path / "poses.csv", {"dance.jpg": joints(0), "jump.jpg": joints(1)})
    work = planned(market, poses=tmp_path / "poses.csv")
    assert {recipe.pose for recipe in work.recipes} == {"dance.jpg", "jump.jpg"}
    assert work.split["poses"] == "external"
    assert render_all(work, tmp_path / "out") == 18


def test_external_poses_are_in_the_frame_of_the_sources_whatever_they_are_called(
    tmp_path: Path,
) -> None:
    market, seen = make_market(tmp_path / "data"), []
    images = sorted((market / "market1501/bounding_box_train").iterdir())
    for path in images[1::2]:  # some are larger
        write_bytes(path, encode_jpeg(draw_person(2, 0, 128, 64)))
    own = {path.name: joints(number % 8) for number, path in enumerate(images)}
    write_keypoints(tmp_path / "poses.csv", own)

    def render(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        seen.extend(keypoints)
        return sources

    work = planned(market, ratio=1.0, per_image=1, poses=tmp_path / "poses.csv")
    generator = dataclasses.replace(TINT, render=render, size=load_image(images[0]).shape[:2])
    render_all(work, tmp_path / "out", generator)
    poses = [own[recipe.pose] for recipe in work.recipes]
    np.testing.assert_allclose(seen[: len(poses)], poses, atol=1e-5)


def test_joints_of_other_images_are_refused_with_their_file(market: Path, tmp_path: Path) -> None:
    names = [record.name for record in folder.read_people(market)]
    twice = {name: joints(k % 8) * 2 for k, name in enumerate(names)}
    path = tmp_path / "joints.csv"
    write_keypoints(path, twice)
    for option in ("keypoints", "poses"):
        with pytest.raises(UserError, match=r"joints\.csv: .* images of another size") as error:
            planned(market, **{option: path})
        assert error.value.code == BAD_DATA


# ---------------------------------------------------------------- policies


def test_policies_stand_in_the_split_only_where_they_differ(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    assert "policy" not in work.split
    render_all(work, tmp_path)
    changed = planned(market, policy=PlanPolicy("balanced", 1.5))
    assert changed.split["policy"] == {"pose_policy": "balanced", "same_scale": 1.5}
    assert len(changed.recipes) == len(work.recipes)
    with pytest.raises(UserError, match=r"another configuration.*policy: None -> .*balanced"):
        render_all(changed, tmp_path)


def test_twice_the_amount_holds_the_simple_amount(market: Path) -> None:
    once, twice = planned(market), planned(market, times=2)
    assert len(twice.recipes) == 2 * len(once.recipes) == 36
    assert set(once.recipes) < set(twice.recipes)


def test_body_height_is_compared_in_the_frame_of_one_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    market = make_market(tmp_path)
    names = [record.name for record in folder.read_people(market)]
    poses = {name: standing("front", torso=20 if k % 2 else 12) for k, name in enumerate(names)}
    large = names[1]  # the same picture, twice as large
    write_bytes(
        market / "market1501/bounding_box_train" / large,
        encode_png(draw_person(2, 1, height=128, width=64)),
    )
    poses[large] = rescale(poses[large], (64, 32), (128, 64))
    csv = market / "market1501/market-annotation-train.csv"
    write_keypoints(csv, poses)
    policy = PlanPolicy(same_scale=1.2)
    work = planned(market, ratio=1.0, per_image=6, policy=policy)
    tall = {name for k, name in enumerate(names) if k % 2}
    assert all((recipe.source in tall) == (recipe.pose in tall) for recipe in work.recipes)
    assert large in {recipe.pose for recipe in work.recipes}
    assert not caplog.records


def test_external_poses_are_compared_with_the_joints_of_the_data_set(
    market: Path, tmp_path: Path
) -> None:
    names = [record.name for record in folder.read_people(market)]
    csv, dance = tmp_path / "joints.csv", tmp_path / "dance.csv"
    write_keypoints(csv, {name: standing("front", torso=20) for name in names})
    sizes = {"small.jpg": 12, "same.jpg": 21, "tall.jpg": 25}
    write_keypoints(dance, {name: standing("back", torso=size) for name, size in sizes.items()})
    work = planned(market, keypoints=csv, poses=dance, policy=PlanPolicy(same_scale=1.1))
    assert {recipe.pose for recipe in work.recipes} == {"same.jpg"}
    assert work.split["poses"] == "external"


# ---------------------------------------------------------------- ledger


def test_ledger_ignores_torn_and_altered_lines(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    folder.append_ledger(path, [{"file_name": f"{k}.jpg", "seed": k} for k in range(3)])
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"seed": 1', '"seed": 7')
    path.write_text("\n".join(lines)[:-5])
    assert list(folder.read_ledger(path)) == ["0.jpg"]
    folder.append_ledger(path, [{"file_name": "3.jpg", "seed": 3}])
    assert list(folder.read_ledger(path)) == ["0.jpg", "3.jpg"]


# ---------------------------------------------------------------- another method's images


def foreign_folder(work: Work, root: Path) -> Path:
    stem = work.real[0].name[:-4]
    for name in (
        f"{stem}_2_0099_c1s1_000001_00_vis.png",
        f"{stem}_2_0098_c1s1_000001_00_vis.png",
        "0004_c2_gan7.png",
        "0001_c1_gan.png",  # a test person
        "portrait.png",
        "0002_c9s9_999999_99_2_0004_c1s1_000000_00_vis.png",  # a source that is not in D_tr
    ):
        write_bytes(root / name, encode_png(draw_person(2, 0)))
    write_bytes(root / "0004_c2_broken.png", b"")
    return root


def test_an_interrupted_import_is_not_trained_on(market: Path, tmp_path: Path) -> None:
    work, out = planned(market), tmp_path / "out"
    images = foreign_folder(work, tmp_path / "gan")
    taken_over = imported.import_images(work, images, out, real={})
    next(taken_over)
    taken_over.close()
    with pytest.raises(UserError, match=r"same tools/synthesize\.py --import-from again"):
        folder.read_augmented(out)
    assert any("not finished" in fault for fault in faults(out))
    list(imported.import_images(work, images, out, real={}))
    assert folder.read_augmented(out).synthetic
    assert not list(faults(out))


def test_images_of_another_method_keep_person_and_camera(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    images = foreign_folder(work, tmp_path / "gan")
    notes = list(imported.import_images(work, images, tmp_path / "out", real={}))
    assert len([note for note in notes if not note]) == 3
    assert [n.split(": ")[1][:12] for n in notes if n] == [
        "person 0001 ", "its source i", "the file is ", "no person an"
    ]  # fmt: skip
    stem = work.real[0].name[:-4]
    synthetic = folder.read_augmented(tmp_path / "out").synthetic
    assert synthetic == tuple(
        sorted([f"{stem}_pidm0000.jpg", f"{stem}_pidm0001.jpg", "0004_c2_gan7_pidm0000.jpg"])
    )
    again = list(imported.import_images(work, images, tmp_path / "out", real={}))
    assert again == notes


def test_import_names_what_is_no_file_and_no_person(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    write_bytes(tmp_path / "gan/step-500-0001_c1_gan.png", encode_png(draw_person(2, 0)))
    (tmp_path / "gan/0002_c1_vis.png").symlink_to("nowhere")
    write_bytes(tmp_path / "gan/fake_0002_c1.png", encode_png(draw_person(2, 0)))
    notes = list(imported.import_images(work, tmp_path / "gan", tmp_path / "out", real={}))
    says = ["a dangling link", "must begin with person and camera", "no person and camera"]
    assert [said in note for said, note in zip(says, notes, strict=True)] == [True] * 3


def test_imported_names_of_every_form_tell_their_source(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    stem, unknown = work.real[0].name[:-4], "0002_c9s9_999999_99"  # the second is not in D_tr
    for source in (stem, unknown):
        for form in ("{}.jpeg_2_x_vis", "{}_2_x_vis_1", "{}.jpg___x.jpg_vis", "{}_to_x"):
            write_bytes(tmp_path / f"gan/{form.format(source)}.png", encode_png(draw_person(2, 0)))
    notes = list(imported.import_images(work, tmp_path / "gan", tmp_path / "out", real={}))
    assert sum("its source is not in the training subset" in note for note in notes) == 4
    synthetic = folder.read_augmented(tmp_path / "out").synthetic
    assert synthetic == tuple(f"{stem}_pidm{replica:04d}.jpg" for replica in range(4))


@pytest.mark.parametrize("form", ["{}", "{}_vis", "{}_pidm0000", "{}_gan"])
def test_images_of_a_withheld_source_are_not_imported(
    market: Path, tmp_path: Path, form: str
) -> None:
    work, contents = planned(market), leaks.read_contents(market)
    withheld = min({record.name for record in folder.read_people(market)} - set(work.split["real"]))
    for name in (withheld, work.real[0].name):
        image = encode_jpeg(draw_person(9, 9))
        write_bytes(tmp_path / f"gan/{form.format(name[:-4])}.jpg", image)
    images, out = tmp_path / "gan", tmp_path / "out"
    notes = list(imported.import_images(work, images, out, real=contents.named()))
    assert sum("its source is not in the training subset" in note for note in notes) == 1
    (entry,) = folder.read_ledger(out / folder.MANIFEST).values()
    assert entry["source"] == work.real[0].name


@pytest.mark.parametrize("name", ["0002_c1\\a.jpg", "0002_c1\u2028.jpg", "0002_c1\udce9.jpg"])
def test_names_that_no_ledger_may_hold_are_left_out(
    market: Path, tmp_path: Path, name: str
) -> None:
    write_bytes(tmp_path / "gan/0002_c1_gan.jpg", encode_jpeg(draw_person(2, 0)))
    write_bytes(tmp_path / "gan" / name, encode_jpeg(draw_person(2, 1)))
    images, out = tmp_path / "gan", tmp_path / "out"
    notes = list(imported.import_images(planned(market), images, out, real={}))
    assert sorted(map(bool, notes)) == [False, True]
    assert folder.read_augmented(out).synthetic == ("0002_c1_gan_pidm0000.jpg",)


def test_a_training_image_that_no_ledger_may_hold_is_refused_at_once(tmp_path: Path) -> None:
    market = make_market(tmp_path)
    write_bytes(market / "market1501" / folder.TRAIN / "0002_c1s2\\7.jpg", b"")
    with pytest.raises(UserError, match="is not the name of a file"):
        planned(market)


def test_test_pairs_are_not_imported(market: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    write_bytes(pairs / "0002_c1s1_000451_01_2_x_vis.png", b"")
    write_bytes(pairs / "pairs.json", b'{"role": "eval"}')
    with pytest.raises(UserError, match="drawn for evaluation"):
        list(imported.import_images(planned(market), pairs, tmp_path / "out", real={}))
    assert not (tmp_path / "out").exists()


def test_a_copy_of_a_real_image_is_not_imported(market: Path, tmp_path: Path) -> None:
    work, contents = planned(market), leaks.read_contents(market)
    withheld = {record.name for record in folder.read_people(market)} - set(work.split["real"])
    stem = work.real[0].name[:-4]
    for name in (min(withheld), work.real[0].name):
        image = market / "market1501" / folder.TRAIN / name
        write_bytes(tmp_path / f"gan/{stem}_2_{name}", image.read_bytes())
    write_bytes(tmp_path / f"gan/{stem}_2_x.jpg", encode_jpeg(draw_person(9, 9)))
    images, out = tmp_path / "gan", tmp_path / "out"
    notes = list(imported.import_images(work, images, out, real=contents.named()))
    assert sum("no generated image but a copy of" in note for note in notes) == 2
    assert len(folder.read_augmented(out).synthetic) == 1


def test_import_of_an_empty_folder_is_refused(market: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        list(imported.import_images(planned(market), tmp_path / "empty", tmp_path / "out", real={}))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- development root


def test_development_split_is_written_as_a_market1501_root(market: Path, tmp_path: Path) -> None:
    from pidm_reid.plan import development_split

    split = development_split(folder.read_people(market))
    folder.write_market1501(tmp_path, train=split.train, query=split.query, gallery=split.gallery)
    assert [r.name for r in folder.read_people(tmp_path)] == [r.name for r in split.train]
    assert [r.name for r in folder.read_people(tmp_path, "query")] == [r.name for r in split.query]
    assert (tmp_path / "market1501/market-annotation-train.csv").is_file()
    with pytest.raises(UserError, match="exists already") as error:
        folder.write_market1501(tmp_path, train=split.train, query=[], gallery=[])
    assert error.value.code == USAGE


def test_keypoints_above_the_subsets_go_with_a_development_split(tmp_path: Path) -> None:
    market = make_market(tmp_path / "whole")
    for file in (market / "market1501").glob("*.csv"):
        file.rename(market / file.name)
    people = folder.read_people(market)
    folder.write_market1501(tmp_path / "part", train=people, query=people, gallery=people)
    there = {path.name for path in (tmp_path / "part/market1501").glob("*.csv")}
    assert there == {path.name for path in market.glob("*.csv")} != set()


def test_evaluation_folders_are_refused_for_training(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    recipes = dataclasses.replace(work.recipes, role="eval")
    render_all(dataclasses.replace(work, recipes=recipes), tmp_path)
    with pytest.raises(UserError, match="made for evaluation"):
        folder.read_augmented(tmp_path)


def test_folder_without_split_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split\.json.*tools/synthesize\.py"):
        folder.read_augmented(tmp_path)


def test_what_another_folder_has_is_not_rendered_again(market: Path, tmp_path: Path) -> None:
    small, large = planned(market, per_image=1), planned(market, per_image=2)
    render_all(small, tmp_path / "small")
    render_all(large, tmp_path / "straight")
    image = tmp_path / "small/market1501/bounding_box_train" / small.recipes[0].file_name
    image.write_bytes(image.read_bytes() + b"0")  # damaged: to be drawn anew
    out = tmp_path / "out"
    todo = synthesize.start(large, TINT, out)
    left = synthesize.take_over(todo, TINT, out, tmp_path / "small")
    assert (len(todo), len(left)) == (36, 36 - 17)
    other = dataclasses.replace(TINT, fingerprint="tint 2")
    assert len(synthesize.take_over(todo, other, out, tmp_path / "small")) == 36
    assert len(synthesize.take_over(todo, TINT, out, tmp_path / "nowhere")) == 36
    assert sum(synthesize.synthesize(left, large, TINT, out)) == len(left)
    assert files(out) == files(tmp_path / "straight")
    assert len(synthesize.start(large, TINT, out)) == 0


# ---------------------------------------------------------------- cost


def test_seconds_spent_add_up_and_a_torn_line_counts_nothing(tmp_path: Path) -> None:
    assert folder.spent(tmp_path) == {}
    (tmp_path / folder.COST).write_text('{"a": 1.5}\n{"b": 2}\n{"a": 4}\n{"a": 1')
    assert folder.spent(tmp_path) == {"a": 5.5, "b": 2}
    folder.note_cost(tmp_path, "a", 0.25)
    assert folder.spent(tmp_path) == {"a": 5.75, "b": 2}


def test_an_interrupted_block_is_noted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with folder.spending(tmp_path, "a"):
            time.sleep(0.02)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 0.02 <= folder.spent(tmp_path)["a"] < 5
