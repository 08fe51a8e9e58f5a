"""Training and testing ResNet50: equal to torchreid's own engine, repeatable, and refusing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from people import make_market, planned, render_all

from pidm_core import BAD_DATA, UserError, parse, write_bytes
from pidm_reid import compat, finetune, folder, weights
from pidm_reid.config import ReidTable, Stage, StudentConfig
from pidm_reid.dataset import Item

torchreid = compat.torchreid()
pytestmark = pytest.mark.usefixtures("small_network")
SMALL = StudentConfig(height=64, width=32, batch_size=12, weights="none", precision="fp32")
SHORT = Stage(steps=3, warmup_steps=1)


@pytest.fixture(scope="module")
def real(market: Path) -> list[Item]:
    """The training list of the made-up market."""
    return finetune.train_list(record.path for record in folder.read_people(market))


@pytest.fixture(scope="module")
def test_set(market: Path) -> finetune.TestSet:
    """Its query and gallery."""
    return finetune.read_test(market)


@pytest.fixture(scope="module")
def trained(
    real: list[Item], test_set: finetune.TestSet, small_network: None
) -> tuple[weights.State, finetune.Result]:
    """A network after three iterations."""
    return finetune.train_and_test(real, test_set, config=SMALL, stage=SHORT, seed=0)


def engine(real: list[Item], test_set: finetune.TestSet, kind: Any = None) -> Any:
    """Our engine in fp32, or torchreid's own, after the same seed."""
    torchreid.utils.set_random_seed(5)
    manager = finetune.make_manager(real, test_set, config=SMALL)
    model, _ = finetune._make_model(6, config=SMALL, start=None)
    # plain gradient descent: Adam's first steps blow rounding errors up to full steps
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    options = {
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        "use_gpu": False,
    }
    if kind:
        return kind(manager, model, **options)
    return finetune.FastSoftmaxEngine(manager, model, bf16=False, **options)


def test_losses_equal_those_of_torchreids_engine(
    real: list[Item], test_set: finetune.TestSet
) -> None:
    theirs = engine(real, test_set, torchreid.engine.ImageSoftmaxEngine)
    ours = engine(real, test_set)
    for runner in (theirs, ours):
        runner.model.double().train()  # a fresh ResNet50 blows rounding errors up
    for data in list(theirs.train_loader):
        data["img"] = data["img"].double()
        expected, found = theirs.forward_backward(data), ours.forward_backward(data)
        assert found == pytest.approx(expected, rel=1e-3)


def test_figures_equal_those_of_torchreids_engine(
    real: list[Item], test_set: finetune.TestSet
) -> None:
    ours = engine(real, test_set)
    ranking = finetune.rank(finetune.embed_test(ours), test_set)
    (loaders,) = ours.test_loader.values()
    with compat.quiet():
        rank1, precision = ours._evaluate(
            query_loader=loaders["query"], gallery_loader=loaders["gallery"], ranks=[1]
        )
    assert ranking.mAP == pytest.approx(precision, abs=1e-6)
    assert ranking.rank(1) == pytest.approx(rank1, abs=1e-6)


def test_learning_rate_rises_then_falls_along_a_cosine(
    real: list[Item], test_set: finetune.TestSet
) -> None:
    stage = Stage(steps=8, lr=1.0, warmup_steps=4)
    manager = finetune.make_manager(real, test_set, config=SMALL)
    model = torch.nn.Linear(1, 1)
    runner = finetune._make_engine(manager, model, config=SMALL, stage=stage)
    rates = []
    for _ in range(8):
        rates.append(runner.get_current_lr())
        runner.optimizer.step()
        runner.scheduler.step()
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 0.8536, 0.5, 0.1464], abs=1e-4)


def test_training_runs_the_stated_iterations_over_several_epochs(
    real: list[Item], test_set: finetune.TestSet
) -> None:
    runner = engine(real, test_set)
    runner.forward_backward = lambda data: {"loss": float(len(data["pid"]))}
    assert [step["loss"] for step in finetune.iterate(runner, 7)] == [12] * 7
    assert runner.epoch == 2  # three batches each


def test_same_arguments_give_the_same_weights(
    real: list[Item], test_set: finetune.TestSet, trained: Any
) -> None:
    state, result = finetune.train_and_test(real, test_set, config=SMALL, stage=SHORT, seed=0)
    assert all(torch.equal(value, trained[0][name]) for name, value in state.items())
    assert result.ranking.mAP == trained[1].ranking.mAP


def test_fine_tuning_starts_from_the_standard_weights(
    real: list[Item], test_set: finetune.TestSet, trained: Any, tmp_path: Path
) -> None:
    state, _ = trained
    weights.save_state(tmp_path / "standard.safetensors", state)
    start = weights.load_state(tmp_path / "standard.safetensors")
    idle = Stage(steps=1, lr=0.0, warmup_steps=0)
    after, result = finetune.train_and_test(
        real, test_set, config=SMALL, stage=idle, seed=1, start=start
    )
    learned = [name for name in state if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(after[name], state[name]) for name in learned)
    assert result.weights == "Standard"


def test_result_says_what_was_done(trained: Any) -> None:
    result = trained[1]
    assert (result.images, result.people, result.steps) == (36, 6, 3)
    assert (result.weights, result.precision) == ("from scratch", "fp32")
    assert result.ranking.queries == 12
    assert (result.ranking.junk, result.ranking.distractors) == (3, 3)


def test_network_is_torchreids_resnet50(
    real: list[Item], test_set: finetune.TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "NETWORK", "resnet50")
    once = Stage(steps=1, warmup_steps=0)
    state, result = finetune.train_and_test(real, test_set, config=SMALL, stage=once, seed=0)
    assert sum(value.numel() for value in state.values()) == pytest.approx(23.6e6, rel=0.01)
    assert 0 < result.ranking.mAP <= 1


def test_bf16_features_rank_almost_as_fp32(
    real: list[Item], test_set: finetune.TestSet, trained: Any
) -> None:
    runner = engine(real, test_set)
    runner.model.load_state_dict(trained[0])
    runner.set_model_mode("eval")
    images = torch.stack([item["img"] for item in runner.test_loader.popitem()[1]["query"].dataset])
    exact = runner.extract_features(images)
    runner.bf16 = True
    rough = runner.extract_features(images)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.99


# ---------------------------------------------------------------- lists


def test_repeated_list_has_the_exact_length_and_is_even() -> None:
    items = [(f"{k}.jpg", k, 0, 0) for k in range(10)]
    long = finetune.repeated(items, 37, seed=0)
    counts = [long.count(item) for item in items]
    assert len(long) == 37
    assert sorted(set(counts)) == [3, 4]
    assert finetune.repeated(items, 37, seed=1) != long


def test_d_aug_is_d_tr_and_the_synthetic_images(market: Path, tmp_path: Path) -> None:
    work = planned(market)
    render_all(work, tmp_path)
    made = folder.read_augmented(tmp_path)
    synthetic = [made.train_folder / name for name in made.synthetic]
    items = finetune.train_list((record.path for record in work.real), synthetic)
    assert [item[3] for item in items] == [0] * 18 + [1] * 18
    assert {item[1] for item in items[:18]} == {item[1] for item in items[18:]} == set(range(6))


# ---------------------------------------------------------------- weights


def test_first_weights_come_from_a_file_and_spare_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "NETWORK", "resnet50")
    theirs = torchreid.models.build_model("resnet50", 1000, loss="softmax", pretrained=False)
    state = {k.replace("classifier", "fc"): v for k, v in theirs.state_dict().items()}
    torch.save(state, tmp_path / "resnet50.pth")
    config = dataclasses.replace(SMALL, weights=str(tmp_path / "resnet50.pth"))
    model, label = finetune._make_model(6, config=config, start=None)
    assert label.startswith("resnet50.pth ")
    assert torch.equal(model.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])
    assert model.classifier.weight.shape == (6, 2048)
    as_many, _ = finetune._make_model(1000, config=config, start=None)
    assert not torch.equal(as_many.state_dict()["classifier.weight"], state["fc.weight"])


def test_missing_or_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"put torchvision's resnet50-19c8e357\.pth there"):
        weights.first_weights_file(str(tmp_path / "nowhere.pth"))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    config = dataclasses.replace(SMALL, weights=str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match="not a ResNet50") as caught:
        finetune._make_model(6, config=config, start=None)
    assert caught.value.code == BAD_DATA
    (tmp_path / "other.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="not a whole weight file"):
        finetune._make_model(6, config=config, start=None)


def test_without_weights_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights.first_weights_file("auto") is None


# ---------------------------------------------------------------- refusals


def test_people_in_both_training_set_and_query_are_refused(
    real: list[Item], test_set: finetune.TestSet
) -> None:
    leaked = [*real, (str(test_set.query[0].path), 0, 0, 0)]
    with pytest.raises(UserError, match="1 people, such as 1, are in the training set"):
        finetune.train_and_test(leaked, test_set, config=SMALL, stage=SHORT, seed=0)


def test_fewer_images_than_a_batch_are_refused(
    real: list[Item], test_set: finetune.TestSet
) -> None:
    config = dataclasses.replace(SMALL, batch_size=64)
    with pytest.raises(
        UserError, match="36 training images are fewer than one batch of 64"
    ) as said:
        finetune.train_and_test(real, test_set, config=config, stage=SHORT, seed=0)
    flags = [word.strip("(),") for word in str(said.value).split() if "--" in word]
    assert flags == ["--batch-size", "--student.batch-size"]
    for parser, flag in zip((StudentConfig, ReidTable), flags, strict=True):
        parse(parser, [flag, "4"], prog="", description="", example="")


def test_exploding_loss_stops_the_training(real: list[Item], test_set: finetune.TestSet) -> None:
    stage = Stage(steps=9, lr=1e30, warmup_steps=0)
    with pytest.raises(UserError, match="the loss is nan at iteration"):
        finetune.train_and_test(real, test_set, config=SMALL, stage=stage, seed=0)


def test_what_could_not_be_tested_is_not_trained(
    real: list[Item], test_set: finetune.TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "_train", None)
    alone = finetune.TestSet(test_set.query[:1], test_set.query[:1], 0)
    with pytest.raises(UserError, match="from another camera"):
        finetune.train_and_test(real, alone, config=SMALL, stage=SHORT, seed=0)
    large = finetune.TestSet(test_set.query, test_set.gallery * 3000, 0)
    monkeypatch.setattr(finetune, "check_images", lambda paths: None)
    with pytest.raises(UserError, match="re-ranking"):
        finetune.train_and_test(real, large, config=SMALL, stage=SHORT, seed=0, rerank=True)


def test_broken_and_synthetic_test_images_are_refused(tmp_path: Path) -> None:
    market = make_market(tmp_path)
    real = finetune.train_list(record.path for record in folder.read_people(market))
    victim = finetune.read_test(market).gallery[0].path
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{victim.name}: not a whole image"):
        finetune.train_and_test(real, finetune.read_test(market), config=SMALL, stage=SHORT, seed=0)
    write_bytes(market / "market1501/query/0001_c1s1_000000_00_pidm0001.jpg", b"")
    with pytest.raises(UserError, match="query and gallery must be real"):
        finetune.read_test(market)


def test_the_engine_keeps_clear_of_amxs_fault(real: list[Item], test_set: finetune.TestSet) -> None:
    strided = engine(real, test_set).model.layer4[0].conv1
    assert strided.stride == (2, 2)
    assert type(strided) is not torch.nn.Conv2d
