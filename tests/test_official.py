"""The authors' checkpoint: our network gives their numbers, and no file runs anything.

golden/official_small.safetensors: weights, inputs and outputs of the authors' code for a small
network of their structure (the weights that it never uses left out; of each texture feature every
16th value). golden/official_shapes.json: names and shapes of their whole published network.
"""

from __future__ import annotations

import enum
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pidm_core import BAD_DATA, USAGE, PIDMPipeline, UserError
from pidm_core.config import DiffusionConfig, ModelConfig, SampleConfig
from pidm_core.diffusion import Diffusion, sample_images
from pidm_core.model import PIDM
from pidm_core.official import (
    SAMPLE,
    authors_names,
    from_state_dict,
    read_checkpoint,
    rename,
    structure,
    unused,
)
from tools.convert_official import main

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SIZE = (64, 32)
Named = dict[str, Tensor]
TINY: Named = {"a": torch.arange(3000.0)}


@pytest.fixture(scope="module")
def golden() -> Named:
    with safe_open(GOLDEN / "official_small.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def state(golden: Named) -> Named:
    """The small network's weights under the authors' names."""
    return {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}


@pytest.fixture(scope="module")
def model(state: Named) -> PIDM:
    return from_state_dict(state, structure(state, SIZE))


@pytest.fixture(scope="module")
def published() -> Named:
    """Tensors without values in the shapes of the published network."""
    shapes = json.loads((GOLDEN / "official_shapes.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


# ---------------------------------------------------------------- the same numbers


def test_the_structure_is_read_off_the_shapes(state: Named, published: Named) -> None:
    with safe_open(GOLDEN / "official_small.safetensors", "pt") as file:
        theirs = json.loads(file.metadata()["config"])
    small = structure(state, SIZE)
    assert small.channels == theirs["model_channels"]
    assert list(small.channel_mults) == theirs["channel_mult"]
    assert small.blocks_per_level == theirs["num_res_blocks"]
    at = [theirs["image_size"] // factor for factor in small.texture_factors]
    assert at == theirs["attention_resolutions"]
    assert structure(published) == ModelConfig(size=(256, 256), texture_factors=(8, 16, 32))


@torch.inference_mode()
def test_texture_features_are_the_authors(model: PIDM, golden: Named) -> None:
    features = model.encode(golden["input.source"])
    assert len(features) == 12
    for k, feature in enumerate(features):
        assert error(feature.flatten()[::16], golden[f"output.texture_feature.{k}"]) < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("output", ["pose_and_style", "pose_only"])
def test_outputs_are_the_authors(model: PIDM, golden: Named, output: str) -> None:
    texture = model.encode(golden["input.source"]) if output == "pose_and_style" else None
    out = model(golden["input.noisy"], golden["input.t"], golden["input.pose"], texture)
    assert error(out, golden[f"output.{output}"]) < 1e-4


def test_four_ddim_steps_are_the_authors(model: PIDM, golden: Named) -> None:
    y = sample_images(
        model,
        Diffusion(DiffusionConfig()),
        texture=model.encode(golden["input.source"]),
        x_p=golden["input.pose"],
        y_T=golden["input.noisy"],
        settings=SampleConfig(
            steps=4, spacing="leading", clip=False, guidance="style", w_s=2.0, sampler="ddim"
        ),
    )
    assert error(y, golden["output.ddim4_style_w2"]) < 1e-3


# ---------------------------------------------------------------- names


def test_every_published_name_is_mapped(published: Named) -> None:
    config = structure(published)
    with torch.device("meta"):
        own = PIDM(config).state_dict()
    weights = rename(published, config)  # refuses unknown, missing and misshapen ones
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in own.items()}
    live = sum(v.numel() for v in weights.values())
    left_out = unused(published)
    assert set(left_out) == {
        "qkv", "proj_out1", "cond_emb_layers", "encoder.emb_layers", "encoder.time_embed"
    }  # fmt: skip
    assert live == pytest.approx(162.37e6, rel=1e-4)
    assert sum(left_out.values()) == pytest.approx(17.98e6, rel=1e-3)
    assert live + sum(left_out.values()) == sum(v.numel() for v in published.values())


def test_no_two_weights_share_a_name(model: PIDM) -> None:
    names = authors_names(model)
    assert names.keys() == model.state_dict().keys()
    assert len(set(names.values())) == len(names)


def test_five_wrong_keys_are_named(state: Named, published: Named) -> None:
    small = structure(state, SIZE)
    other = {f"layer{k}.weight": torch.zeros(3) for k in range(7)}
    with pytest.raises(UserError) as caught:
        from_state_dict(other, structure(other), name="resnet.pt")
    assert all(f"layer{k}.weight is unknown" in str(caught.value) for k in range(5))
    assert "layer5" not in str(caught.value)
    assert caught.value.code == BAD_DATA
    with pytest.raises(UserError, match=r"out\.2\.bias is missing; give"):
        rename({k: v for k, v in state.items() if k != "out.2.bias"}, small)
    with pytest.raises(UserError, match=r"out\.0\.bias is \(31,\), not \(32,\)"):
        rename({**state, "out.0.bias": torch.zeros(31)}, small)
    with pytest.raises(UserError, match=r"block\.1\.to_q\.weight is \(64, 64, 3\), not"):
        rename({**state, "middle_block.1.to_q.weight": torch.zeros(64, 64, 3)}, small)
    with pytest.raises(UserError, match="and 675 more"):
        rename(state, structure(published))


def test_nan_weights_are_refused(state: Named) -> None:
    with pytest.raises(UserError, match=r"NaN or infinite values in denoiser\.out\.2\.bias"):
        from_state_dict({**state, "out.2.bias": torch.full((6,), torch.nan)}, structure(state))


# ---------------------------------------------------------------- the file


class Beta(dict[str, Any]):
    """A dictionary with a name, such as the authors' configuration has."""


class Kind(enum.Enum):
    LINEAR = "linear"


class Conf:
    """In the place of the authors' configuration object; must never be built."""

    def __init__(self) -> None:
        self.beta, self.kind, self.path = Beta(n_timestep=1000), Kind.LINEAR, Path("checkpoints")
        self.seen = {1, 2}

    def __setstate__(self, values: object) -> None:
        raise AssertionError("the configuration was built")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def checkpoint(path: Path, state: Named, **parts: Any) -> Path:
    """A file as the authors save it."""
    scheduler = {"_step_count": 3, "phases": [Beta(), (1.5, None)]}
    torch.save(
        {"model": state, "ema": state, "scheduler": scheduler, "conf": Conf(), **parts}, path
    )
    return path


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "tools" / "convert_official.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def convert(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def test_tensors_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    weights = OrderedDict(
        plain=base, view=base.t()[1:4, ::2], parameter=torch.nn.Parameter(torch.randn(3)),
        half=base.half(), bfloat=base.bfloat16(), double=base.double(), scalar=torch.tensor(7),
    )  # fmt: skip
    module = torch.nn.Linear(2, 2).state_dict()  # with torch's _metadata on it
    path = checkpoint(tmp_path / "last.pt", module, ema=weights)
    part, got, other = read_checkpoint(path)
    assert (part, other) == ("ema", ("model", "scheduler", "conf"))
    torch.save(weights, tmp_path / "reference.pt")
    reference = torch.load(tmp_path / "reference.pt", weights_only=True)
    assert got.keys() == reference.keys()
    for name, value in reference.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value)


def test_without_averaged_weights_the_plain_ones_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"model": {"a": torch.ones(2)}, "conf": Conf()}, path)
    assert read_checkpoint(path)[0] == "model"


def test_the_tool_makes_a_run_folder(
    tmp_path: Path, state: Named, model: PIDM, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = {
        "middle_block.1.qkv.weight": torch.zeros(192, 64, 1),
        "encoder.time_embed.0.bias": torch.zeros(64),
    }
    plain = {name: torch.zeros_like(value) for name, value in state.items()}
    path = checkpoint(tmp_path / "last.pt", plain, ema={**state, **dead})
    out = tmp_path / "runs" / "official"
    command = ("--checkpoint", path, "--out", out, "--size", "64,32")
    assert convert(*command, "--dry-run") == 0
    assert f"{path}: took 'ema', " in capsys.readouterr().out
    assert not out.exists()
    assert convert(*command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{path}: took 'ema', ")
    assert said[1] == ("left out, never used by the network: encoder.time_embed (64), qkv (12,288)")
    assert said[2] == "left out, other parts of the file: model, scheduler, conf"
    assert said[-1].startswith(f"{out}: converted. Next: python tools/synthesize.py --run {out} ")
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {
        "config.yaml", "model/config.json", "model/manifest.json", "model/model.safetensors",
        "model/README.md",
    }  # fmt: skip
    pipe = PIDMPipeline.from_pretrained(out)
    assert (pipe.size, pipe.settings) == (SIZE, SAMPLE)
    for name, value in pipe.model.state_dict().items():
        assert torch.equal(value.cpu(), model.state_dict()[name])


def test_a_training_run_is_not_overwritten(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "last.pt", TINY)
    for part in ("checkpoints", "model"):
        (tmp_path / part / part).mkdir(parents=True)
        with pytest.raises(UserError, match="holds a training run or model") as caught:
            convert("--checkpoint", path, "--out", tmp_path / part)
        assert caught.value.code == USAGE


PAYLOADS = {
    "system": lambda mark: Evil(os.system, f"touch {mark}"),
    "popen": lambda mark: Evil(subprocess.check_output, ["touch", str(mark)]),
    "eval": lambda mark: Evil(eval, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Evil(open, str(mark), "w"),
    "attribute": lambda mark: Evil(getattr, mark, "touch"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("place", ["ema", "weight", "conf", "file", "pickle"])
def test_nothing_in_a_malicious_file_runs(tmp_path: Path, payload: str, place: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "last.pt"
    evil = PAYLOADS[payload](mark)
    if place == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif place == "file":
        torch.save(evil, path)
    elif place == "weight":
        checkpoint(path, TINY, ema={**TINY, "b": evil})
    else:
        checkpoint(path, TINY, **{place: evil})
    if place == "conf" and payload in ("open", "attribute"):
        read_checkpoint(path)  # inert beside good weights
    else:
        with pytest.raises(UserError, match="nothing in it was run") as caught:
            read_checkpoint(path)
        assert caught.value.code == BAD_DATA
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_the_payload_would_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(PAYLOADS["system"](mark)))
    assert mark.exists()


def test_the_tool_refuses_a_malicious_file_with_one_line(tmp_path: Path) -> None:
    mark, out = tmp_path / "mark", tmp_path / "run"
    path = checkpoint(tmp_path / "last.pt", TINY, conf=Evil(os.system, f"touch {mark}"))
    done = command("--checkpoint", path, "--out", out)
    assert (done.returncode, done.stdout) == (BAD_DATA, "")
    assert done.stderr.startswith(f"error: {path}: would call 'posix.system' when loaded")
    assert done.stderr.count("\n") == 1
    assert not mark.exists()
    assert not out.exists()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1000)


def other_parts(path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, path)


def unprintable(path: Path) -> None:
    torch.save({"model": {"a\nerror: b": torch.zeros(1)}}, path)


def expanded(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1).expand(1 << 40)}}, path)


BROKEN = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
    "empty": (b"", "the file is empty"),
    "text": (b"not weights", "not a zip archive"),
    "truncated": (truncated, "cut off"),
    "flipped": (flipped, "not a whole checkpoint"),
    "compressed": (compressed, "compressed"),
    "unprintable": (unprintable, "keys that are no names"),
    "expanded": (expanded, "a tensor larger than its values"),
    "parts": (other_parts, r"neither 'ema' nor 'model' .*\(state_dict, epoch\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_other_files_are_refused(tmp_path: Path, kind: str) -> None:
    content, words = BROKEN[kind]
    path = checkpoint(tmp_path / "last.pt", TINY)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_checkpoint(path)
    assert caught.value.code == BAD_DATA
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_argument_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt: no such file") as caught:
        convert("--checkpoint", tmp_path / "nowhere.pt", "--out", tmp_path / "run")
    assert caught.value.code == BAD_DATA
    with pytest.raises(UserError, match="give --checkpoint") as caught:
        convert()
    assert caught.value.code == USAGE
