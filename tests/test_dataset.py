"""PIDMAugmentedDataset inside torchreid: lists, samplers, engines, sums, and refusals.

With TORCHREID_SOURCE=DIR (a checkout of KaiyangZhou/deep-person-reid) the same tests run once
more against that package, in a process of their own.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from people import data_manager, make_market, planned, render_all

import pidm_reid
from pidm_core import UserError, write_bytes
from pidm_reid import compat, dataset, folder
from pidm_reid.dataset import PIDMAugmentedDataset

torchreid = compat.torchreid()
SAMPLERS = (
    "SequentialSampler",
    "RandomSampler",
    "RandomIdentitySampler",
    "RandomDomainSampler",
    "RandomDatasetSampler",
)


@pytest.fixture(scope="module")
def augmented(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the made-up market with 18 tinted images."""
    out = tmp_path_factory.mktemp("augmented") / "market1501_pidm50"
    render_all(planned(market), out)
    return out


def base(market: Path, **options: Any) -> Any:
    with compat.quiet():
        return compat.base_class("market1501")(root=str(market), verbose=False, **options)


def ours(market: Path, augmented: Path, **options: Any) -> Any:
    return PIDMAugmentedDataset(str(market), augmented=str(augmented), verbose=False, **options)


def names(items: list[dataset.Item]) -> list[str]:
    return [os.path.basename(item[0]) for item in items]


def test_the_augmented_folder_is_a_root_as_well(market: Path, augmented: Path) -> None:
    inside, beside = ours(augmented, augmented), ours(market, augmented)
    for part in ("train", "query", "gallery"):
        assert names(getattr(inside, part)) == names(getattr(beside, part))


def test_training_set_is_d_tr_and_the_generated_images(market: Path, augmented: Path) -> None:
    data = ours(market, augmented)
    made = folder.read_augmented(augmented)
    assert names(data.train) == [*made.real, *made.synthetic]
    assert data.data is data.train
    assert len(data) == 36
    assert isinstance(data, PIDMAugmentedDataset)
    assert isinstance(data, compat.base_class("market1501"))
    assert (data.num_train_pids, data.num_train_cams, data.num_datasets) == (6, 3, 2)


def test_labels_cameras_and_data_set_ids_come_from_the_source(
    market: Path, augmented: Path
) -> None:
    people = [2, 4, 6, 8, 10, 12]
    for path, label, camid, dsetid in ours(market, augmented).train:
        name = os.path.basename(path)
        assert people[label] == int(name[:4])
        assert camid == int(name[6]) - 1
        assert dsetid == ("_pidm" in name)


def test_query_and_gallery_are_the_bases(market: Path, augmented: Path) -> None:
    original = base(market)
    for mode in ("train", "query", "gallery"):
        data = ours(market, augmented, mode=mode)
        assert data.query == original.query
        assert data.gallery == original.gallery
        assert (
            data.data is {"train": data.train, "query": data.query, "gallery": data.gallery}[mode]
        )


def test_augmented_folder_is_a_root_by_itself(augmented: Path) -> None:
    assert len(ours(augmented, augmented)) == 36


def test_combineall_adds_the_test_people_neither_cut_nor_enlarged(
    market: Path, augmented: Path
) -> None:
    data = ours(market, augmented, combineall=True)
    tested = [item for item in (*data.query, *data.gallery) if item[1] > 0]
    assert sorted(names(data.train[36:])) == sorted(names(tested))
    assert {item[1] for item in data.train} == set(range(6 + 4))
    assert data.num_train_pids == 10
    assert len(data) == 36 + len(tested)


def test_k_tfm_gives_several_views(market: Path, augmented: Path) -> None:
    data = ours(market, augmented, k_tfm=3, transform=lambda image: image.size)
    assert data[0]["img"] == [(32, 64)] * 3


def test_sum_of_data_sets_keeps_people_and_cameras_apart(market: Path, augmented: Path) -> None:
    both = sum([ours(market, augmented), base(market)])
    assert len(both.train) == 36 + 36
    assert {item[1] for item in both.train[36:]} == set(range(6, 12))
    assert {item[3] for item in both.train} == {0, 1, 2}


def test_workers_that_are_spawned_can_load_it(market: Path, augmented: Path) -> None:
    data = pickle.loads(pickle.dumps(ours(market, augmented)))
    assert isinstance(data, PIDMAugmentedDataset)
    assert len(data) == 36


# ---------------------------------------------------------------- inside torchreid


def manager(market: Path, augmented: Path, sampler: str = "RandomSampler") -> Any:
    name = f"made_up_{abs(hash(augmented))}"
    pidm_reid.register(name, base="market1501", augmented=augmented)
    pidm_reid.register(name, base="market1501", augmented=augmented)  # again: no error
    return data_manager(market, [name], workers=0, train_sampler=sampler)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_of_torchreid_works(market: Path, augmented: Path, sampler: str) -> None:
    batch = next(iter(manager(market, augmented, sampler).train_loader))
    assert batch["img"].shape == (12, 3, 64, 32)
    if sampler == "RandomDatasetSampler":  # half real, half synthetic
        assert sorted(batch["dsetid"].tolist()) == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("engine", "loss"), [("ImageSoftmaxEngine", "softmax"), ("ImageTripletEngine", "triplet")]
)
def test_engines_of_torchreid_train_and_test_on_it(
    market: Path, augmented: Path, tmp_path: Path, engine: str, loss: str
) -> None:
    data = manager(market, augmented, "RandomIdentitySampler")
    with compat.quiet():
        model = torchreid.models.build_model("resnet18", 6, loss=loss, pretrained=False)
        optimizer = torchreid.optim.build_optimizer(model)
        scheduler = torchreid.optim.build_lr_scheduler(optimizer)
        runner = getattr(torchreid.engine, engine)(
            data, model, optimizer, scheduler=scheduler, use_gpu=False
        )
        runner.run(save_dir=str(tmp_path), max_epoch=1, ranks=[1, 5, 10])
    (saved,) = (tmp_path / "model").glob("model.pth.tar*")
    assert torch.load(saved, weights_only=True)["epoch"] == 1


def test_both_spellings_of_torchreids_rooms_can_be_imported() -> None:
    import torchreid.data
    import torchreid.utils

    assert torchreid.data is compat.torchreid().data
    assert callable(torchreid.utils.read_image)


# ---------------------------------------------------------------- refusals


def test_missing_folder_is_refused_and_nothing_is_created(tmp_path: Path, augmented: Path) -> None:
    with pytest.raises(UserError, match=f"no such folder; root must be .*, or .*, {augmented}$"):
        ours(tmp_path / "nowhere", augmented)
    assert not list(tmp_path.iterdir())


def test_base_without_query_is_refused(tmp_path: Path, augmented: Path) -> None:
    (tmp_path / "market1501/bounding_box_train").mkdir(parents=True)
    with pytest.raises(UserError, match="not found"):
        ours(tmp_path, augmented)


def test_folder_of_another_data_set_is_refused(tmp_path: Path, augmented: Path) -> None:
    other = make_market(tmp_path, train=2)
    with pytest.raises(UserError, match="made from another data set"):
        ours(other, augmented)


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
def test_images_that_torchreid_would_pass_over_are_named(part: str, tmp_path: Path) -> None:
    market = make_market(tmp_path / "data")
    image = sorted((market / "market1501" / part).glob("*.jpg"))[1]
    image.rename(image.with_suffix(".JPG"))
    render_all(planned(market), tmp_path / "out")
    with pytest.raises(UserError, match=f"{part}: .* not 1 images such as {image.stem}.JPG"):
        ours(market, tmp_path / "out")


def test_another_working_directory_changes_no_folder(
    market: Path, augmented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(augmented.parent)
    pidm_reid.register("moved", augmented=augmented.name)
    monkeypatch.chdir(market)
    assert compat.data_sets()["moved"](root=str(market), verbose=False).folder == augmented
    compat.data_sets().pop("moved")


def test_broken_image_is_named_at_once(tmp_path: Path) -> None:
    market = make_market(tmp_path / "data")
    render_all(planned(market), tmp_path / "out")
    victim = folder.read_augmented(tmp_path / "out").real[3]
    (market / "market1501/bounding_box_train" / victim).write_bytes(b"")
    with pytest.raises(UserError, match=f"{victim}: the file is empty"):
        ours(market, tmp_path / "out")


def test_changed_synthetic_image_is_named_with_the_remedy(tmp_path: Path) -> None:
    market = make_market(tmp_path / "data")
    render_all(planned(market), tmp_path / "out")
    made = folder.read_augmented(tmp_path / "out")
    write_bytes(made.train_folder / made.synthetic[0], b"")
    with pytest.raises(UserError, match=f"{made.synthetic[0]}: missing or changed"):
        ours(market, tmp_path / "out")


def test_taken_names_and_unknown_bases_are_refused(augmented: Path) -> None:
    with pytest.raises(UserError, match="choose another name"):
        pidm_reid.register("market1501", augmented=augmented)
    with pytest.raises(UserError, match=r"knows no data set 'market'.*market1501"):
        pidm_reid.register("new", base="market", augmented=augmented)


@pytest.mark.skipif("TORCHREID_SOURCE" not in os.environ, reason="no checkout of torchreid given")
def test_everything_here_holds_for_the_upstream_repository() -> None:
    source = os.environ["TORCHREID_SOURCE"]
    environment = {key: value for key, value in os.environ.items() if key != "TORCHREID_SOURCE"}
    which = "import torchreid; print(torchreid.__file__)"
    environment["PYTHONPATH"] = source
    ran = [
        subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
        for arguments in (["-c", which], ["-m", "pytest", __file__])
    ]
    assert source in ran[0].stdout
    assert ran[1].returncode == 0, ran[1].stdout[-3000:]


@pytest.mark.parametrize(
    ("cameras", "batch", "number", "message"),
    [
        ([0, 0, 0, 1], 4, 2, "camera 2 has 1 training images and a batch takes 2 of each"),
        ([0, 0, 1, 1], 3, 2, "a batch of 3 is not shared evenly by 2"),
        ([0, 0, 1, 1], 1, 2, "a batch of 1 is not shared evenly by 2"),
        ([0, 0, 1, 1], 6, 3, "a batch of 3 cameras is asked for, the training set has 2"),
        ([0, 0, 0, 1], 4, -1, "camera 2 has 1 training images"),  # all of them
    ],
)
def test_a_camera_with_too_few_images_is_named(
    cameras: list[int], batch: int, number: int, message: str
) -> None:
    items = [(f"{k}.jpg", 0, camera, 0) for k, camera in enumerate(cameras)]
    sampler = sys.modules["torchreid.data.sampler"].RandomDomainSampler
    with pytest.raises(UserError, match=f"RandomDomainSampler: {message}"):
        sampler(items, batch, n_domain=number)  # by its name in torchreid
    assert sorted(sampler([*items, *items], 4, 2)) != []
