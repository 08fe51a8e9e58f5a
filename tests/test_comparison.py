"""Models side by side: figures worked by hand, and the whole way with untrained networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_probe import ROWS, SHORT, Reader, joints, mark

from pidm_core import UserError, comparison, decode_image, load_image, probe_networks
from pidm_core.checkpoint import save_model
from pidm_core.comparison import Row, compare, evaluations, front, judge, load, measure, plot
from pidm_core.config import ModelConfig, PIDMConfig, SampleConfig
from pidm_core.data import Record
from pidm_core.model import PIDM
from pidm_core.probe import Crowd, Probe
from pidm_core.toy_market import make
from tools.compare_models import main


def row(frechet: float, *seeds: float, diversity: float | None = 0.5, top_1: float = 0.8) -> Row:
    return Row(3, frechet, seeds or (frechet,), diversity, top_1, 0.5, 6.0, 0.4)


def test_figures_worked_by_hand() -> None:
    poses = np.stack([joints(pose) for _, pose, _ in ROWS])
    crowd = Crowd(
        records=tuple(Record(Path(), str(r), r[0], r[2]) for r in ROWS),
        images=np.stack([mark(*r) for r in ROWS]),
        found=poses,
        exact=poses,
        pids=np.array([pid for pid, _, _ in ROWS]),
        cameras=np.array([camera for _, _, camera in ROWS]),
    )
    probe = Probe(crowd, np.array([[0, 1], [3, 4]]), Reader())  # of persons 1 and 2, poses 3 and 5
    right = np.stack([mark(1, 3, 1), mark(2, 5, 1)])
    always_1 = np.stack([mark(1, 3, 1), mark(1, 5, 1)])
    found = measure([right, always_1], probe, 4)
    # The features are e1 and e2, so all lies on a line with e1 and e2 at +-0.5 ** 0.5.
    # Truth: mean 0, variance 1. Always e1: mean 0.5 ** 0.5, variance 0.
    # Both together, e1 three times: mean 0.5 ** 1.5, variance 0.5.
    assert found.frechet_of_seeds == pytest.approx((0, 0.5 + 1))
    assert found.frechet == pytest.approx(0.5**3 + (1 - 0.5**0.5) ** 2)
    assert found.frechet_spread == pytest.approx(1.5)
    assert found.diversity == pytest.approx(2**0.5 / 2)  # of pair 1 nothing, of pair 2 |e1 - e2|
    assert found.top_1 == (1 + 0.5) / 2
    assert found.joints == 0
    assert measure([right], probe, 4).diversity is None


def test_the_front_holds_what_nothing_cheaper_betters() -> None:
    def at(evaluations: int, frechet: float, top_1: float) -> Row:
        return dataclasses.replace(row(frechet, top_1=top_1), evaluations=evaluations)

    rows = {
        "slow": at(9, 0.2, 0.9), "worse": at(9, 0.3, 0.8), "cheap": at(1, 0.4, 0.5),
        "dominated": at(4, 0.5, 0.5), "equal": at(12, 0.2, 0.9),
    }  # fmt: skip
    assert front(rows, "frechet") == ["cheap", "slow"]
    assert front(rows, "top_1") == ["cheap", "slow"]
    picture = decode_image(plot(rows), "plot")
    assert picture.shape[2] == 3
    assert picture.std() > 10
    alone = {name: dataclasses.replace(one, diversity=None) for name, one in rows.items()}
    assert decode_image(plot(alone), "plot").shape == picture.shape  # with one seed


def test_a_name_goes_on_with_settings() -> None:
    settings = load("toy_market:10:dpm++:dcf:0.3-1").settings
    assert (settings.steps, settings.sampler, settings.guidance) == (10, "dpm++", "dcf")
    assert settings.interval == (0.3, 1.0)
    own = load("toy_market").settings
    assert dataclasses.replace(settings, steps=own.steps, sampler=own.sampler,
                               guidance=own.guidance, interval=own.interval) == own  # fmt: skip
    with pytest.raises(UserError, match=r"'0' in 'toy_market:0' is no number of steps, sampler"):
        load("toy_market:0")
    for text in ("0.3.1-1", ".-1", "0.3-"):
        with pytest.raises(UserError, match="is no number of steps"):
            load(f"toy_market:{text}")


def test_a_model_is_as_good_within_five_percent_or_the_spread_over_seeds() -> None:
    steady, varied = row(0.2), row(0.2, 0.18, 0.21)
    assert judge(row(0.209), steady).passed
    assert not judge(row(0.211), steady).passed
    assert judge(row(0.211), varied).frechet_allowed == pytest.approx(1.15)
    assert judge(row(0.229), varied).passed
    assert not judge(row(0.231), varied).passed


def test_identity_and_diversity_have_to_be_kept() -> None:
    first = row(0.2)
    assert judge(row(0.2, top_1=0.777), first).passed
    assert not judge(row(0.2, top_1=0.775), first).passed
    assert judge(row(0.2, diversity=0.451), first).passed
    assert not judge(row(0.2, diversity=0.449), first).passed
    assert not judge(row(0.2, diversity=None), first).passed
    assert "not measured (at least 90%): not shown to be as good" in str(
        judge(row(0.2, diversity=None), first)
    )


def test_a_judge_that_knows_nobody_tells_nothing() -> None:
    blind = row(0.2, top_1=0.0, diversity=0.0)
    assert not judge(blind, blind).passed
    assert "top-1 not measured" in str(judge(blind, blind))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("people")
    make(out, preset="tiny", test_people="development", workers=1)
    return out


@pytest.fixture
def run(tmp_path: Path) -> str:
    model = ModelConfig(
        patch=8, channels=32, channel_mults=(1, 1), blocks_per_level=1, texture_factors=(16,)
    )
    config = PIDMConfig(model=model, sample=SampleConfig(steps=1, batch_size=4, guidance="chain"))
    save_model(tmp_path / "run/model", PIDM(model).state_dict(), config, card="")
    return str(tmp_path / "run")


def test_a_name_may_end_in_a_number_of_steps(run: str) -> None:
    assert load(run).settings.steps == 1
    assert load(f"{run}:5").settings.steps == 5
    assert evaluations(load(f"{run}:5")) == 15
    with pytest.raises(UserError, match=r"'0' in '.*' is no number of steps"):
        load(f"{run}:0")
    with pytest.raises(UserError, match="at least one model"):
        compare([], data="", cache="", pairs=1, seeds=1)


def test_the_tool_measures_untrained_models_and_goes_on_where_it_was(
    people: Path, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(probe_networks, "Training", lambda: SHORT)
    out = {key: str(tmp_path / key) for key in ("cache", "figures.json", "sheet.png")}
    flags = ["--models", f"{run}:2,{run}", "--data", str(people), "--cache", out["cache"]]
    flags += ["--pairs", "4", "--seeds", "2"]
    assert main([*flags, "--dry-run"]) == 0
    assert f"{run}:2: 8 images, 48 evaluations" in capsys.readouterr().out
    assert main([*flags, "--json", out["figures.json"], "--sheet", out["sheet.png"]]) == 0
    figures = json.loads(Path(out["figures.json"]).read_text())
    assert [found["evaluations"] for found in figures["rows"].values()] == [6, 3]
    assert list(figures["verdicts"]) == [run]
    assert figures["verdicts"][run]["frechet"] == pytest.approx(
        figures["rows"][run]["frechet"] / figures["rows"][f"{run}:2"]["frechet"]
    )
    assert load_image(out["sheet.png"]).shape[0] == 20 + 4 * (2 * 128 + 4)
    first = capsys.readouterr().out
    monkeypatch.setattr(comparison, "draw_pairs", None)  # all is drawn
    assert main(flags) == 0
    figures_again, end = capsys.readouterr().out.split("nothing was written")
    assert "--json FILE" in end
    assert f"{figures_again}-> {out['figures.json']}\n-> {out['sheet.png']}\n" == first
