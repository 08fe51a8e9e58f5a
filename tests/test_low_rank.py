"""Weights as differences of low rank, and the bundled student that is kept so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import TINY

from pidm_core import BAD_DATA, UserError, checkpoint, config, low_rank, seen, sha256
from pidm_core.checkpoint import ASSETS, bundle, load_model, write_tensors
from pidm_core.config import PIDMConfig
from pidm_core.low_rank import reduced, restored
from pidm_core.model import PIDM
from pidm_core.pipeline import PIDMPipeline

STUDENT = ASSETS / "toy_market_student"
LIMIT = 12_000_000  # bytes of all bundled weights


def test_a_difference_of_low_rank_comes_back() -> None:
    torch.manual_seed(0)
    base = {"w": torch.randn(6, 2, 3, 3), "same": torch.randn(4, 4), "b": torch.randn(6)}
    left, right = torch.randn(6, 2).bfloat16().float(), torch.randn(2, 18).bfloat16().float()
    weights = {**base, "w": base["w"] + (left @ right).view(6, 2, 3, 3), "b": base["b"] + 0.5}
    parts = reduced(weights, base, 2 * (6 + 2 * (6 + 18)))
    assert {name: tuple(part.shape) for name, part in parts.items() if name != "b"} == {
        "w.left": (6, 2), "w.right": (2, 18)
    }  # fmt: skip
    assert all(part.dtype == torch.bfloat16 for part in parts.values())
    for name, value in restored(parts, base).items():
        torch.testing.assert_close(value, weights[name], rtol=2e-2, atol=2e-2)


def test_vectors_beyond_the_limit_are_refused() -> None:
    weights, base = {"a": torch.ones(1_000)}, {"a": torch.zeros(1_000)}
    assert reduced(weights, base, 2_000)["a"].numel() == 1_000
    with pytest.raises(ValueError, match="2,000 bytes, more than 1,999"):
        reduced(weights, base, 1_999)


def test_bytes_go_where_they_explain_most() -> None:
    base = {name: torch.zeros(8, 8) for name in ("large", "small")} | {"b": torch.zeros(3)}
    large, small = torch.zeros(8, 8), torch.zeros(8, 8)
    large[0, 0], large[1, 1], small[0, 0] = 4, 1, 2
    weights = {"large": large, "small": small, "b": torch.ones(3)}
    triplet = 2 * (8 + 8)

    def ranks(limit: int) -> dict[str, int]:
        parts = reduced(weights, base, limit)
        assert sum(part.nbytes for part in parts.values()) <= limit
        return {name: len(part) for name, part in parts.items() if name.endswith(".right")}

    vector = 2 * 3
    assert ranks(vector + triplet) == {"large.right": 1}
    assert ranks(vector + 2 * triplet) == {"large.right": 1, "small.right": 1}
    assert ranks(vector + 3 * triplet) == {"large.right": 2, "small.right": 1}
    assert ranks(vector + 9 * triplet) == {"large.right": 2, "small.right": 1}  # the rest is zero


def test_the_bundled_student_is_its_teacher_in_few_bytes() -> None:
    sizes = {path.parent.name: path.stat().st_size for path in ASSETS.glob("*/model.safetensors")}
    assert sum(sizes.values()) <= LIMIT
    assert sizes["toy_market_student"] < sizes["toy_market"] / 10
    teacher, diffusion, _, digest = load_model(ASSETS / "toy_market")
    student, same_diffusion, settings, _ = load_model(STUDENT)
    assert diffusion == same_diffusion
    assert (settings.steps, settings.guidance) == (4, "none")
    assert json.loads((STUDENT / "student.json").read_text())["weights"] == digest
    with torch.no_grad():
        own, begun = (torch.cat([p.flatten() for p in m.parameters()]) for m in (student, teacher))
    assert 0.01 < (own - begun).norm() / begun.norm() < 0.1
    assert seen.read_seen("toy_market_student") == seen.read_seen("toy_market")
    assert seen.read_seen(STUDENT) == seen.read_seen("toy_market")
    assert PIDMPipeline.from_pretrained("toy_market_student").settings.steps == 4


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundled models of a tiny network: a base, and a run that began with it."""
    home = tmp_path / "assets"
    for module in (checkpoint, config, seen):
        monkeypatch.setattr(module, "ASSETS", home)
    settings, model = PIDMConfig(model=TINY), PIDM(TINY)
    checkpoint.save_model(home / "base", model.state_dict(), settings, card="a base\n")
    shutil.copy(ASSETS / "toy_market/seen.json", home / "base")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    checkpoint.save_model(run / "model", model.state_dict(), settings, card="a student\n")
    checkpoint.write_json(run / "config.yaml", {"model": {**vars(TINY)}})
    bundle(run, home / "difference", base="base", limit=10**9)
    return home


def test_a_model_is_bundled_as_differences(assets: Path) -> None:
    mine, *_ = load_model(assets / "difference")
    whole, *_ = load_model(assets.parent / "run" / "model")
    for a, b in zip(mine.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    assert "low rank" in (assets / "difference/README.md").read_text()
    assert seen.read_seen(assets / "difference") == seen.read_seen(assets / "base")


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ({"name": "../run/model", "weights_sha256": ""}, "no bundled model"),
        ({"name": "nobody", "weights_sha256": ""}, "no bundled model"),
        ({"name": "difference", "weights_sha256": ""}, "no bundled model"),
        ("base", "no bundled model"),
        ({"name": ["base"]}, "no bundled model"),
        ({"name": "base", "weights_sha256": "0" * 64}, "not the model"),
    ],
)
def test_differences_from_another_model_are_refused(assets: Path, named: object, word: str) -> None:
    path = assets / "difference/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base": named}))
    with pytest.raises(UserError, match=word) as refused:
        load_model(assets / "difference")
    assert refused.value.code == BAD_DATA


@pytest.mark.parametrize("damage", ["left", "right", "whole"])
def test_differences_of_another_shape_are_refused(assets: Path, damage: str) -> None:
    base = load_model(assets / "base")[0].state_dict()
    name = next(name for name, weight in base.items() if weight.ndim == 4)
    rows, columns = len(base[name]), base[name][0].numel()
    parts = {
        f"{name}.left": torch.ones(rows + (damage == "left"), 2),
        f"{name}.right": torch.ones(2 + (damage == "right"), columns),
    }
    if damage == "whole":
        parts = {name: torch.ones(rows)}
    folder = assets / "difference"
    write_tensors(folder / "model.safetensors", parts, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = sha256(folder / "model.safetensors")
    checkpoint.write_json(folder / "config.json", config)
    with pytest.raises(UserError, match=f"{name}: differences of another shape") as refused:
        load_model(folder)
    assert refused.value.code == BAD_DATA


def test_unknown_parts_are_refused_as_weights_of_another_network(assets: Path) -> None:
    base = load_model(assets / "base")[0].state_dict()
    odd = low_rank.restored({"else.left": torch.ones(2, 1), "more": torch.ones(1)}, base)
    with pytest.raises(UserError, match="is unknown"):
        checkpoint.check_weights(base, odd, assets)
