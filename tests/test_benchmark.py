"""What is compared must be the same thing: the references agree, and the figures add up."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import TINY
from torch import nn

from pidm_core import benchmark
from pidm_core.benchmark import Row
from pidm_core.config import DiffusionConfig, Guidance, PIDMConfig, TrainConfig
from pidm_core.diffusion import Diffusion, guidance_terms
from pidm_core.hardware import Placement
from tools import benchmark as tool


@pytest.mark.parametrize("guidance", ["style", "dcf", "chain"])
def test_ours_equals_the_reference(guidance: Guidance) -> None:
    cpu = torch.device("cpu")
    exact = torch.float64  # in which only a wrong path differs
    given = benchmark.conditions(TINY, 3, cpu)
    values = {name: value.to(exact) for name, value in vars(given).items() if name != "t"}
    given = dataclasses.replace(given, **values)
    model, diffusion = benchmark.network(TINY).to(exact), Diffusion(DiffusionConfig())
    placement = Placement(cpu, exact)
    with torch.inference_mode():
        expected = benchmark.reference(model, diffusion, given, guidance)(given.y_t, given.t)
        model = placement.module(benchmark.network(TINY))
        fast = benchmark.ours(model, diffusion, given, guidance, placement)
        found = fast(given.y_t, given.t)
    # the sampler leaves the network in float32
    found, expected = found[:, :3], expected[:, :3]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    assert expected.std() > 0.01  # not the zeros of a new network


def test_rows_state_ratio_difference_and_rate_of_the_same_run() -> None:
    plain, fast = benchmark.sampling(
        TINY, guidance="style", batches=(2,), rates={torch.float32: 2.0}
    )
    assert plain.what == "style, batch 2: reference, fp32"
    assert (plain.ratio, plain.difference) == (None, None)
    assert fast.ratio == pytest.approx(plain.seconds / fast.seconds)
    assert fast.difference is not None
    assert fast.difference < 2e-4  # rounding: 4e-5 for this network of random weights
    assert fast.rate is not None
    assert fast.share == pytest.approx(fast.rate / 2)
    plain, fast, loader = benchmark.training(
        TINY, batch=2, rates=dict.fromkeys((torch.float32, torch.bfloat16), 2.0)
    )
    assert fast.ratio == pytest.approx(plain.seconds / fast.seconds)
    assert plain.rate == pytest.approx(benchmark.pair_work(TINY) / plain.seconds / 1e12)
    assert fast.share == pytest.approx(fast.rate / 2)
    assert loader.ratio == pytest.approx(fast.seconds / loader.seconds)


def test_what_is_compared_takes_turns_and_gives_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock, cost = 0.0, {"slow": iter([9, 3, 1, 8]), "fast": iter([9, 2, 0.5, 0.25])}

    def act(name: str) -> None:
        nonlocal clock
        calls.append(name)
        clock += next(cost[name])

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock)
    acts = [functools.partial(act, name) for name in ("slow", "fast")]
    assert benchmark.in_turns(acts) == [3, 0.5]
    assert calls == ["slow", "fast"] * 4  # of which the first round is left out
    cost["slow"] = iter([0.0625] * 9)
    assert benchmark.in_turns(acts[:1], before=0) == [0.0625]
    assert len(calls) == 8 + 4  # until a quarter of a second is settled


def test_the_reference_does_the_work_of_every_branch() -> None:
    cpu = torch.device("cpu")
    given, model = benchmark.conditions(TINY, 1, cpu), benchmark.network(TINY)
    diffusion = Diffusion(DiffusionConfig())
    once = benchmark._flops(lambda: model(given.y_t, given.t, given.x_p, model.encode(given.x_s)))
    once -= benchmark._flops(lambda: model.encode(given.x_s))
    denoise = benchmark.reference(model, diffusion, given, "chain")
    assert len(guidance_terms("chain", 2, 2)) == 3
    assert benchmark._flops(lambda: denoise(given.y_t, given.t)) == pytest.approx(3 * once)


def test_work_is_counted_as_by_hand() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)  # 2 * 9 * 4 * 8 a pixel
    assert benchmark._flops(lambda: conv(torch.ones(2, 4, 5, 6))) == 2 * 9 * 4 * 8 * 2 * 5 * 6
    assert benchmark._rate(3e12, 1.5) == 2


def test_a_training_step_is_counted_as_two_and_a_half_to_three_times_its_forward_pass() -> None:
    given, model = benchmark.conditions(TINY, 1, torch.device("cpu")), benchmark.network(TINY)
    once = benchmark._flops(lambda: model(given.y_t, given.t, given.x_p, model.encode(given.x_s)))
    assert 2.5 * once < benchmark.pair_work(TINY) < 3 * once  # the first layer's input needs none
    assert (
        benchmark.pair_work(TINY, recompute=True) > benchmark.pair_work(TINY) + 0.5 * once
    )  # of its blocks


def test_a_training_is_guessed_from_its_work_and_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "convolution_rate", lambda _: 0.3)
    config = PIDMConfig(model=TINY, train=TrainConfig(steps=10**6, batch_size=36))
    hours = benchmark.pair_work(TINY) * 10**6 * 36 / 0.3e12 / 3600
    words = f"{hours / 0.75:,.1f} to {3 * hours:,.1f} hours here"
    assert benchmark.training_hours(config).startswith(words)
    short = PIDMConfig(model=TINY, train=TrainConfig(steps=100, batch_size=36))
    words = f"{hours / 0.75 / 10**4 * 60:,.1f} to {3 * hours / 10**4 * 60:,.1f} minutes here"
    assert benchmark.training_hours(short).startswith(words)


def test_recomputing_keeps_the_inputs_of_the_layers_alone() -> None:
    everything, inputs = (benchmark.kept_bytes(TINY, recompute=again) for again in (False, True))
    assert inputs < everything / 2
    assert inputs > 4 * TINY.channels * TINY.size[0] * TINY.size[1] / TINY.patch**2


def test_a_line_leaves_out_what_was_not_measured() -> None:
    first, second = map(benchmark.line, (Row("a", 0.5), Row("b", 0.25, 2.0, 3e-6, 0.1, 0.5)))
    assert first.split() == ["a", "500.0", "ms"]
    assert second.split() == ["b", "250.0", "ms", "2.00", "3e-06", "0.100", "50%"]
    assert len(first) == len(second) == len(benchmark.heading("step"))


def test_a_line_is_said_once_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    before: list[int] = []  # lines said before a row was measured

    def rows(*_: object, **__: object) -> Iterator[Row]:
        for name in ("slow", "fast"):
            before.append(len(said))
            yield Row(name, 0.5)

    monkeypatch.setattr(benchmark, "sampling", rows)
    monkeypatch.setattr(benchmark, "training", rows)
    network = benchmark.Measured("tiny", TINY, (1,), 1)
    report = benchmark.measure(network, {}, said.append)
    assert [row.what for row in report.steps] == ["slow", "fast"] * 3
    assert [row.what for row in report.training] == ["slow", "fast"]
    assert before == [1, 2, 3, 4, 5, 6, 8, 9]
    assert said[1:3] == [*map(benchmark.line, report.steps[:2])]


def test_it_says_what_it_would_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--dry-run"]) == 0
    hardware, small, paper = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in hardware
    assert small.startswith("small (the bundled model's): 64x32, ")
    assert paper == (
        "paper: 128x64, texture blocks at factors 8, 16, 32; "
        "guidance style, dcf, chain in batches of 1, 4, 8"
    )


FAULTS = """
import resource, torch
from pidm_core.hardware import tune_allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

tune_allocator()
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
counts = []
for _ in range(8):
    before = faults()
    values = [torch.ones(2**22) for _ in range(4)]  # 16 MB each
    counts.append(faults() - before)
    del values
print(resident, counts[0], counts[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_and_its_pages_are_large() -> None:
    shown = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True).stdout
    # Not the second time: a hole that small blocks have made some bytes too narrow is passed over.
    resident, first, again = map(int, shown.split())
    assert resident < 2**30  # room is addresses, not memory
    assert again < 16  # of the 16,384 pages of 4 KB
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if mode.is_file() and "[madvise]" in mode.read_text():
        assert first < 1000
