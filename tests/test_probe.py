"""The probe on hand-worked people, on fake renderers, and the whole way with untrained networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from pidm_core import load_image, probe_networks
from pidm_core.checkpoint import save_model
from pidm_core.config import ModelConfig, PIDMConfig, SampleConfig
from pidm_core.data import Record
from pidm_core.files import BAD_DATA, UserError
from pidm_core.garments import colour_error, garment_mask, garment_regions, rgb_to_lab
from pidm_core.hardware import place
from pidm_core.keypoints import L_HIP, NECK, R_HIP
from pidm_core.model import PIDM
from pidm_core.probe import Crowd, Probe, Setting, choose_pairs, read_crowd, settings
from pidm_core.probe_networks import INPUT, Judges, Training, train_judges
from pidm_core.probe_report import Renderer, make_probe, measure
from pidm_core.toy_market import make, oracle_render
from tools.probe_generator import main

SHORT = Training(joint_steps=3, identity_steps=3, batch_size=8)
TALL, WIDE = 64, 56


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe")
    return make(out, preset="tiny", test_people="development", workers=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def drawn(root: Path, cache: Path) -> Probe:
    return make_probe(root, count=12, cache=cache, training=SHORT)


# ---------------------------------------------------------------- made-up people


def mark(pid: int, pose: int, camera: int) -> np.ndarray:
    """A picture whose corner says who, in which pose and by which camera."""
    image = np.full((TALL, WIDE, 3), 40 * pid + 10 * camera, dtype=np.uint8)
    image[0, 0] = pid, pose, camera
    return image


def joints(pose: int) -> np.ndarray:
    """All joints at x = 10 + 4 pose: poses p and q are 4 |p - q| px apart."""
    rows = np.linspace(4, TALL - 4, 18)
    return np.stack([np.full(18, 10.0 + 4 * pose), rows], axis=1)


class Reader(Judges):
    """Judges that read the marks."""

    def __init__(self) -> None:
        pass

    def joints(self, images: np.ndarray) -> np.ndarray:
        return np.stack([joints(int(image[0, 0, 1])) for image in images])

    def features(self, images: np.ndarray) -> np.ndarray:
        return np.eye(256)[images[:, 0, 0, 0], :4]  # the mean's mark is nobody's


ROWS = [(1, 0, 1), (1, 3, 2), (1, 4, 3), (2, 1, 1), (2, 5, 2), (2, 6, 3)]  # pid, pose, camera


@pytest.fixture
def marked() -> Probe:
    poses = np.stack([joints(pose) for _, pose, _ in ROWS])
    crowd = Crowd(
        records=tuple(Record(Path(), str(row), row[0], row[2]) for row in ROWS),
        images=np.stack([mark(*row) for row in ROWS]),
        found=poses,
        exact=poses,
        pids=np.array([pid for pid, _, _ in ROWS]),
        cameras=np.array([camera for _, _, camera in ROWS]),
    )
    return Probe(crowd, np.array([[0, 1], [3, 4]]), Reader())


def redraw(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
    """The perfect generator of marks: the source's person and camera in the asked pose."""
    poses = (keypoints[:, 0, 0] - 10) / 4
    whos = zip(sources[:, 0, 0], poses, strict=True)
    return np.stack([mark(int(who[0]), int(pose), int(who[2])) for who, pose in whos])


def keep(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
    return sources


def test_rivals_and_scores_worked_by_hand(marked: Probe) -> None:
    report = measure(marked, [Renderer("ours", redraw)], seed=0)
    # poses: target 3 and 5; sources 0 and 1; nearest 4 and 6; the mean's mark is that of neither
    assert report.rows["true target"]["joints"] == 0
    assert report.rows["source"]["joints"] == 4 * (3 + 4) / 2
    assert report.rows["nearest pose"]["joints"] == 4
    assert report.rows["ours"]["joints"] == 0
    assert report.rows["true target"]["ssim"] == report.rows["true target"]["ssim_256"] == 1
    assert report.rows["ours"]["identity"] == report.rows["ours"]["top_1"] == 1
    gain = report.gains["ours"]["source"]["joints"]
    assert gain["mean"] == 14  # 12 px for person 1, 16 for person 2
    assert gain["half"] == pytest.approx(1.96 * np.std([12, 16], ddof=1) / 2**0.5, abs=1e-3)


def test_photographs_by_the_targets_camera_are_told_from_others(marked: Probe) -> None:
    crowd = dataclasses.replace(marked.crowd, cameras=np.array([2, 2, 3, 1, 2, 3]))
    rows = measure(Probe(crowd, marked.pairs, Reader()), [Renderer("ours", redraw)], seed=0).rows
    assert rows["source, target's camera"]["joints"] == 12  # of person 1
    assert rows["source, another camera"]["joints"] == 16  # of person 2
    assert not [name for name in rows if name.startswith("nearest pose,")]  # both by camera 3
    assert not [name for name in rows if name.startswith(("ours,", "blurred mean,"))]


def test_a_score_of_one_person_alone_has_no_interval(marked: Probe) -> None:
    scores = marked.score(marked.crowd.images[marked.targets])
    one = dataclasses.replace(scores, upper=np.array([1.0, np.nan]))  # out of the second's picture
    gain = marked.gain(one, scores)
    assert "upper" not in gain
    assert gain["joints"] == {"mean": 0.0, "half": 0.0}
    assert one.means()["upper"] == 1
    assert "lower" not in dataclasses.replace(one, lower=np.full(2, np.nan)).means()


def test_the_controls_tell_source_and_pose_apart(marked: Probe) -> None:
    true = measure(marked, [Renderer("ours", redraw)], seed=0).controls
    assert true == {
        "identity, generated": 1,
        "identity, generated from another person": 0,
        "identity, that one with the other person": 1,
        "identity, real": 1,
        "identity, real of another person": 0,
        "joints, another pose asked: to the new pose": 0,
        "joints, another pose asked: to the old pose": 8,  # poses 3 and 5
    }
    lazy = measure(marked, [Renderer("ours", keep)], seed=0).controls
    # sources in pose 1 for target 3, in pose 0 for target 5; their own targets are 5 and 3
    assert lazy["joints, another pose asked: to the new pose"] == 4 * (2 + 5) / 2
    assert lazy["joints, another pose asked: to the old pose"] == 4 * (4 + 3) / 2


def test_identity_leaves_out_the_cameras_of_the_pair(marked: Probe) -> None:
    marked.crowd.images[2, 0, 0, 0] = 3  # by the third camera person 1 looks like nobody known
    marked.crowd.images[3, 0, 0, 0] = 1  # and person 2, once, like person 1
    probe = Probe(marked.crowd, marked.pairs, Reader())
    scores = probe.score(probe.crowd.images[probe.targets])
    assert scores.identity.tolist() == [0, 1]
    assert scores.top_1.tolist() == [0, 1]


# ---------------------------------------------------------------- clothes


def test_lab_equals_scikit_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    np.testing.assert_allclose(rgb_to_lab(image), rgb2lab(image), atol=0.01)


def figure() -> np.ndarray:
    """Neck at (30, 20), hips around (30, 60), knees at y = 90."""
    points = np.full((18, 2), np.nan)
    points[[NECK, R_HIP, L_HIP, 9, 12]] = [(30, 20), (24, 60), (36, 60), (24, 90), (36, 90)]
    return points


def test_garments_lie_along_spine_and_thighs() -> None:
    upper, lower = garment_regions(figure(), (128, 64))
    # torso 40 px: the spine's stretch is y = 30 ... 54 with 5.6 px around it
    assert np.flatnonzero(upper.any(1))[[0, -1]].tolist() == [25, 59]
    assert np.flatnonzero(upper[40]).tolist() == list(range(25, 36))
    # thighs of 30 px: y = 64.5 ... 76.5 with 4 px around it
    assert np.flatnonzero(lower.any(1))[[0, -1]].tolist() == [61, 80]
    assert np.flatnonzero(lower[70]).tolist() == [*range(20, 29), *range(32, 41)]


def test_a_garment_to_redraw_follows_the_body() -> None:
    points = figure()
    points[[2, 5]] = [(20, 20), (40, 20)]
    mask = garment_mask(points, "upper", (128, 64))
    # torso 40 px: the lines from shoulder to hip pass x = 22 and 38, with 9.6 px around each
    assert np.flatnonzero(mask[40]).tolist() == list(range(13, 48))
    assert np.flatnonzero(mask.any(1))[[0, -1]].tolist() == [11, 69]
    points[[3, 4]] = [(8, 40), (8, 60)]  # the right arm hangs away from the body
    assert (garment_mask(points, "upper", (128, 64)) & ~mask)[30:64, :12].any(1).all()
    points[[10, 13]] = [(24, 120), (36, 120)]
    legs = np.flatnonzero(garment_mask(points, "lower", (128, 64)).any(1))
    assert legs[[0, -1]].tolist() == [60 - 12, 127]
    with pytest.raises(UserError, match="lower garment: its joints are not all in the picture"):
        garment_mask(figure(), "lower", (128, 64))
    points[9] = np.nan
    with pytest.raises(UserError, match="lower garment: its joints are not all in the picture"):
        garment_mask(points, "lower", (128, 64))


def test_colour_error_of_black_against_white_and_of_what_is_not_there() -> None:
    black = np.zeros((1, 128, 64, 3), dtype=np.uint8)
    white_above = black.copy()
    white_above[:, :60] = 255
    np.testing.assert_allclose(
        colour_error(black, figure()[None], white_above, figure()[None]), [[100, 0]], atol=0.01
    )
    legless = figure()[None].copy()
    legless[:, [9, 12]] = np.nan
    upper, lower = colour_error(black, legless, black, figure()[None])[0]
    assert upper == 0
    assert np.isnan(lower)


# ---------------------------------------------------------------- drawn people


def test_the_truth_scores_like_the_truth_and_the_source_like_the_source(drawn: Probe) -> None:
    crowd = drawn.crowd
    poses = {crowd.found[i].tobytes(): crowd.images[i] for i in drawn.targets}

    def truth(sources: np.ndarray, keypoints: np.ndarray, seeds: list[int]) -> np.ndarray:
        return np.stack([poses[points.tobytes()] for points in keypoints])

    report = measure(drawn, [Renderer("truth", truth), Renderer("lazy", keep)], seed=0)
    target, source = report.rows["true target"], report.rows["source"]
    assert target["ssim"] == 1
    assert target["upper"] == target["lower"] == 0
    assert {key: report.rows["truth"][key] for key in target} == target
    same = ("ssim", "ssim_256", "upper_place", "lower_place", "joints", "identity", "top_1")
    assert [report.rows["lazy"][key] for key in same] == [source[key] for key in same]
    # Who is asked for a pose has his clothes looked for there; a rival's are where he wears them.
    assert report.rows["lazy"]["upper"] == source["upper_place"] != source["upper"]
    assert report.sheet.shape == (20 + 6 * 260, 2 * 5 * (128 + 4), 3)
    json.dumps(report.to_json(), allow_nan=False)


def test_toy_market_itself_beats_every_rival_in_ssim(root: Path, drawn: Probe) -> None:
    report = measure(drawn, [Renderer("oracle", oracle_render(root))], seed=0)
    assert min(gain["ssim"]["mean"] for gain in report.gains["oracle"].values()) > 0


def test_pairs_are_of_one_person_seen_by_a_third_camera(root: Path) -> None:
    crowd = read_crowd(root, "test")
    pairs = choose_pairs(crowd, 12, seed=0)
    assert (crowd.pids[pairs[:, 0]] == crowd.pids[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    for pair in pairs:
        seen = set(crowd.cameras[crowd.pids == crowd.pids[pair[0]]])
        assert seen - set(crowd.cameras[pair])
    counts = np.unique(crowd.pids[pairs[:, 0]], return_counts=True)[1]
    assert np.ptp(counts) <= 1
    assert np.array_equal(pairs, choose_pairs(crowd, 12, seed=0))
    assert not np.array_equal(pairs, choose_pairs(crowd, 12, seed=1))
    nearby = crowd.found[pairs[:, 1]] - crowd.exact[pairs[:, 1]]
    assert np.nanmax(np.abs(nearby)) <= 8


def test_too_few_pairs_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="1 pairs do not show two people"):
        choose_pairs(read_crowd(root, "test"), 1, seed=0)


def test_test_people_are_refused(root: Path, tmp_path: Path) -> None:
    note = json.loads((root / "toy_market.json").read_text())
    (tmp_path / "toy_market.json").write_text(json.dumps({**note, "test_people": "test"}))
    with pytest.raises(UserError, match="--test-people development"):
        read_crowd(tmp_path, "test")


# ---------------------------------------------------------------- the judging networks


def test_joints_follow_the_picture_when_it_is_moved() -> None:
    # A bright spot at the nose: after flip, shift and zoom the nose is still there.
    images = np.zeros((4, 128, 64, 3), dtype=np.uint8)
    images[:, 40:48, 20:28] = 255
    exact = np.full((4, 18, 2), np.nan)
    exact[:, 0] = 23.5, 43.5
    crowd = Crowd((), images, exact, exact, np.arange(4), np.arange(4))
    training = Training(batch_size=16, max_tint=0.0)
    classes = np.unique(crowd.pids, return_inverse=True)[1]
    examples = probe_networks._Examples(crowd, place("fp32"), training, classes)
    batch = examples.draw(np.random.default_rng(0))
    weight = (batch.images.mean(1) + 1).clamp(min=0)  # (B, 64, 32)
    total = weight.sum((1, 2))
    x = (weight.sum(1) @ (torch.arange(32) + 0.5)) / total / 32
    y = (weight.sum(2) @ (torch.arange(64) + 0.5)) / total / 64
    np.testing.assert_allclose(batch.joints[:, 0], torch.stack([x, y], 1), atol=0.01)
    assert 0 < (batch.joints[:, 0, 0] < 0.5).sum() < 16  # some are flipped


def test_a_few_steps_teach_joints_and_people(root: Path, tmp_path: Path) -> None:
    crowd = read_crowd(root, "train")
    few = Crowd(*(getattr(crowd, name)[:8] for name in vars(crowd)))
    still = {"batch_size": 8, "max_zoom": 0.0, "max_shift": 0.0, "max_tint": 0.0}

    def error(steps: int) -> tuple[float, float]:
        training = Training(joint_steps=steps, identity_steps=1, **still)  # type: ignore[arg-type]
        judges = train_judges(few, tmp_path, name=f"few {steps}", training=training)
        distance = np.linalg.norm(judges.joints(few.images) - few.exact, axis=2)
        return float(np.nanmean(distance)), float(np.linalg.norm(judges.features(few.images)))

    (untrained, _), (trained, length) = error(1), error(60)
    assert trained < 0.5 * untrained
    assert length == pytest.approx(8**0.5, rel=1e-4)  # unit vectors


def test_networks_are_kept_and_an_altered_file_is_refused(root: Path, cache: Path) -> None:
    crowd = read_crowd(root, "train")
    judges = train_judges(crowd, cache, name="kept", training=SHORT)
    files = sorted(cache.glob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in files]
    again = train_judges(crowd, cache, name="kept", training=SHORT)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert np.array_equal(judges.features(crowd.images[:4]), again.features(crowd.images[:4]))
    other = train_judges(crowd, cache, name="other", training=SHORT)
    assert np.array_equal(judges.features(crowd.images[:4]), other.features(crowd.images[:4]))
    for path in set(cache.glob("*.safetensors")) - set(files):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="remove the file") as error:
        train_judges(crowd, cache, name="other", training=SHORT)
    assert error.value.code == BAD_DATA


def test_networks_see_pictures_of_any_size(drawn: Probe) -> None:
    assert INPUT == (64, 32)
    small = drawn.crowd.images[:2, ::2, ::2]
    assert drawn.judges.joints(small).max() < 64
    assert drawn.judges.features(small).shape == (2, 128)


# ---------------------------------------------------------------- settings and the tool


def test_settings_that_mean_the_same_are_measured_once() -> None:
    own = SampleConfig(steps=10, w_p=2.0, w_s=3.0)
    assert settings(own) == [Setting("dcf", 10, 2.0, 3.0)]
    some = settings(own, guidance=["dcf", "cf", "none"], w_p=[1, 2], steps=[5])
    assert list(map(str, some)) == [
        "dcf p1 s3 5 steps", "dcf p2 s3 5 steps", "cf s3 5 steps", "none 5 steps",
    ]  # fmt: skip
    assert [setting.evaluations for setting in some] == [15, 15, 10, 5]
    with pytest.raises(UserError, match="'cfg' is none of dcf, chain"):
        settings(own, guidance=["cfg"])


def test_the_tool_measures_an_untrained_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe_networks, "Training", lambda: SHORT)
    model = ModelConfig(
        patch=8, channels=32, channel_mults=(1, 1), blocks_per_level=1, texture_factors=(16,)
    )
    config = PIDMConfig(model=model, sample=SampleConfig(steps=1, batch_size=4))
    save_model(tmp_path / "run/model", PIDM(model).state_dict(), config, card="")
    out = {key: str(tmp_path / key) for key in ("cache", "figures.json", "sheet.png")}
    flags = ["--run", str(tmp_path / "run"), "--data", str(root.parent), "--cache", out["cache"]]
    flags += ["--pairs", "4", "--guidance", "dcf,none"]
    flags += ["--json", out["figures.json"], "--sheet", out["sheet.png"]]
    assert main([*flags, "--dry-run"]) == 0
    # Two settings of 3 and 1 evaluations, and the first once more for the controls.
    cost = "12 images, 28 network evaluations; two judges are trained first"
    assert capsys.readouterr().out.startswith(cost)
    assert main(flags) == 0
    figures = json.loads(Path(out["figures.json"]).read_text())
    assert figures["pairs"] == 4
    drawn = {name: row for name, row in figures["rows"].items() if "evaluations" in row}
    assert [row["evaluations"] for row in drawn.values()] == [3, 1, 0]
    assert [name for name in figures["rows"] if name not in drawn and "," not in name] == [
        "true target", "source", "nearest pose", "blurred mean",
    ]  # fmt: skip
    assert load_image(out["sheet.png"]).shape[0] == 20 + 4 * (2 * 128 + 4)
    text = capsys.readouterr().out
    assert all(name in text for name in [*figures["rows"], *figures["controls"]])


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_number_of_steps_that_there_is_not_is_refused_before_anything_is_drawn(
    dry_run: list[str], tmp_path: Path
) -> None:
    given = ["--data", str(tmp_path / "people"), "--cache", str(tmp_path / "judges")]
    with pytest.raises(UserError, match="5000 steps are not between"):
        main(["--steps", "3,5000", *given, *dry_run])
    assert not list(tmp_path.iterdir())
