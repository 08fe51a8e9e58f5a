"""Parts are compared with what has the same result, and their figures are those of one run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY

from pidm_core import UserError, benchmark, parts
from pidm_core.parts import Figure, Part
from tools import benchmark_parts as tool

SMALL = {
    "GroupNorm": (partial(parts.norms, (2, 64, 8, 4)), 1e-4),
    "SiLU": (partial(parts.silus, (1, 32, 32, 16)), 1e-6),
    "convolution": (partial(parts.convolutions, [(1, 64, 32, 16)]), 1e-5),
    "ResNet50": (partial(tool.resnets, [(4, 64, 32)]), 2e-2),
    "files": (partial(parts.files, 2), 0),
}


@pytest.mark.parametrize("name", SMALL)
def test_both_ways_have_the_same_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    job, tolerance = SMALL[name]
    if name == "ResNet50":  # batch norm over four images would make much of bfloat16's rounding
        monkeypatch.setattr(parts, "precisions", lambda: [torch.float32])
    part = None
    for part in job():
        with torch.inference_mode(not part.learns):
            expected, found = (_array(act()) for act in part.acts)
        assert np.abs(expected).max() > 0
        allowed = max(tolerance, 0.05 * ("bfloat16" in part.what and name == "GroupNorm"))
        assert np.abs(found - expected).max() <= allowed * np.abs(expected).max(), part.what
    if part is None:
        pytest.skip("this CPU multiplies no bfloat16")


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return np.asarray(value.detach().float().clone())
    return np.frombuffer(value, np.uint8).astype(int)


def test_a_ranking_is_beside_its_product_and_torchreids() -> None:
    product, ranker = tool.rankings(queries=32, images=4000, few=2)
    (distances, whole), (theirs, ours) = ([act() for act in p.acts] for p in (product, ranker))
    assert distances.shape == (32, 4000)
    assert 0 < whole.mAP < 1
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    assert ours[1] == pytest.approx(theirs[1])
    assert ranker.count == 2


def test_a_part_is_measured_in_turns_for_each_of_its_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(2)
    acts = [lambda: one, lambda: one, lambda: 1.5 * one]
    monkeypatch.setattr(
        benchmark,
        "in_turns",
        lambda acts, **_: [8.0, 4.0, 1.0] if torch.is_inference_mode_enabled() else [],
    )
    slow, fast = parts.measure(Part("a step", "theirs", acts, 4, ["plain", "bf16"], "a note"))
    assert slow == Figure("a step, plain", "theirs", 2.0, 1.0, 2.0, 0.0, "a note")
    assert fast == Figure("a step, bf16", "theirs", 2.0, 0.25, 8.0, 0.5, "a note")
    words = "a step, bf16: theirs 2000.00 ms 250.00 ms 8.00 5e-01 a note"
    assert " ".join(parts.line(fast).split()) == words


def test_the_tool_keeps_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Iterator[Part]:
        return iter(())

    for name in ("norms", "silus", "convolutions", "compiled"):
        monkeypatch.setattr(parts, name, none)
    for name in ("resnets", "rankings"):
        monkeypatch.setattr(tool, name, none)
    monkeypatch.chdir(tmp_path)
    assert tool.main(["--json", "parts.json"]) == 0
    kept = json.loads(Path("parts.json").read_text())
    (figure,) = kept["parts"]
    assert figure["what"].startswith("writing a file of ")
    assert parts.line(Figure(**figure)) in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.json"]


@pytest.mark.slow  # it compiles for two minutes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own code
def test_torch_compile_is_beside_our_step() -> None:
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["frames"]["ok"]
    compiled = [*parts.compiled(TINY, 2)]
    if not compiled:
        pytest.skip("there is no compiler")
    assert torch._dynamo.utils.counters["frames"]["ok"] > before
    for part in compiled:
        with torch.inference_mode():
            expected, found = (act().float() for act in part.acts)
        assert float((found - expected).abs().max() / expected.abs().max()) < 0.1
        assert part.note.startswith("its first call took ")


def test_another_folder_is_no_clone_of_the_authors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clone of ankanbhunia/PIDM"):
        tool.main(["--authors", str(tmp_path)])
