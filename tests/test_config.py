"""Settings: defaults, YAML files of differences, flags, and what is said about mistakes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from pidm_core.config import PIDMConfig, Sampling
from pidm_core.files import USAGE, UserError
from pidm_core.options import from_dict, load_config, parse, read_yaml, save_config, to_dict
from pidm_reid.config import ReidTable
from pidm_reid.rows import ROWS, rows

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Section:
    """Part of the options."""

    learning_rate: float = 1e-3
    """Step size."""
    warmup: bool = True
    """Start slowly."""


@dataclass(frozen=True)
class Options:
    """All of them."""

    name: str = "x"
    """A word, 100 % free."""
    count: int = 3
    """How many."""
    ratio: float = 0.4
    """Which share."""
    sizes: tuple[int, ...] = (1, 2)
    """Several."""
    seed: int | None = None
    """None = the clock."""
    kind: Literal["ddim", "ddpm"] = "ddim"
    """Which."""
    part: Section = field(default_factory=Section)


def options(*argv: str) -> Options:
    return parse(Options, list(argv), prog="tool", description="Do it.", example="tool --count 4")


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ratio: 1e-4", 1e-4),
        ("ratio: .5", 0.5),
        ("count: 010", 10),
        ("count: 1_0", 10),
        ("name: no", "no"),
        ("name: 010", "010"),
        ("name: 1e-4", "1e-4"),
        ("name: 2024-01-01", "2024-01-01"),
        ("name: ''", ""),
        ("sizes: [3, 4]", (3, 4)),
        ("sizes: 3,4", (3, 4)),
        ("seed: null", None),
        ("seed: 5", 5),
        (f"seed: {2**53 + 1}", 2**53 + 1),
        ("kind: ddpm", "ddpm"),
        ("part: {warmup: false}", Section(warmup=False)),
        ("part:\n  learning_rate: 2e-5\n", Section(learning_rate=2e-5)),
        ("\ufeffcount: 7\r\n", 7),
    ],
)
def test_values_are_typed_by_the_field_not_by_yaml(
    tmp_path: Path, text: str, expected: object
) -> None:
    config = load_config(Options, yaml(tmp_path, text))
    key = text.lstrip("\ufeff").split(":")[0]
    value = getattr(config, key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont: 3", "unknown key 'cuont'; did you mean 'count'?"),
        (
            "part: {lerning_rate: 1}",
            "part.unknown key 'lerning_rate'; did you mean 'learning_rate'",
        ),
        ("count: 3\ncount: 4", "'count' stands twice"),
        ("part: {warmup: true, warmup: true}", "'warmup' stands twice"),
        ("part: {warmup: no}", "part.warmup: expected bool, got 'no'"),
        ("part: {warmup: 1}", "part.warmup: expected bool"),
        ("part: 3", "part: expected a section"),
        ("count: 1.5", "count: expected int"),
        ("count: 3 apples", "count: expected int"),
        ("count: [1]", "count: expected int"),
        ("count:", "count: expected int"),
        ("ratio: .nan", "ratio: expected float"),
        ("ratio: nan", "ratio: expected float"),
        ("name: [a]", "name: expected str"),
        ("sizes: {a: 1}", "sizes: expected a list"),
        ("kind: ddpn", "kind: 'ddpn' is none of ddim, ddpm"),
        ("a: &a [1]\nb: *a", "anchors and aliases"),
        ("count: !!python/object/apply:os.system ['true']", "not valid YAML (tags such as"),
        ("- 1", "expected keys and values"),
        ("", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("a: " + "[" * 500, "not valid YAML"),
        ("? [a, b]\n: 1", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_line_with_its_name(
    tmp_path: Path, text: str, message: str
) -> None:
    path = yaml(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(Options, path)
    assert message.replace("part.unknown", "unknown") in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    with pytest.raises(UserError, match="anchors and aliases"):
        read_yaml(yaml(tmp_path, "\n".join(lines)))


def test_missing_folder_and_huge_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            load_config(Options, path)
    with pytest.raises(UserError, match="larger than 256 KiB"):
        read_yaml(yaml(tmp_path, "#" * (1 << 20) + "\na: 1"))


def test_a_configuration_survives_the_file(tmp_path: Path) -> None:
    config = from_dict(
        PIDMConfig,
        {"data": "010", "train": {"lr": "1e-4", "init": "no"}, "model": {"size": [64, 32]}},
    )
    save_config(config, tmp_path / "c.yaml")
    assert load_config(PIDMConfig, tmp_path / "c.yaml") == config
    assert to_dict(config)["model"]["size"] == [64, 32]
    assert from_dict(PIDMConfig, to_dict(config)) == config
    assert from_dict(PIDMConfig, {}) == PIDMConfig()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("train", "steps", 0), ("train", "batch_size", 0), ("train", "keep", 1)),
        *(("train", "eta", 0.4), ("sample", "steps", 0), ("model", "channels", 48)),
        *(
            ("train", "lr", -1e-4),
            ("train", "clip_norm", 0.0),
            ("train", "ema_decay", 1.0),
            ("train", "warmup_steps", -1),
        ),
        *(("train", "max_scale", -0.1), ("train", "sample_every", -1), ("train", "patience", -1)),
        ("model", "texture_factors", [3]),
        ("train", "seed", -1),
        ("train", "seed", 2**63),
    ],
)
def test_impossible_values_are_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{section}.{key}"):
        from_dict(PIDMConfig, {section: {key: value}})


@pytest.mark.parametrize("process", [{"T": 5000}, {"beta_last": 0.5}])
def test_levels_without_any_image_left_are_refused(process: dict[str, float]) -> None:
    with pytest.raises(UserError, match="of the image is left, less than 1e-12"):
        from_dict(PIDMConfig, {"diffusion": process})
    from_dict(PIDMConfig, {"diffusion": {"T": 2000}})


# ---------------------------------------------------------------- the command line


def test_no_guidance_is_a_guidance_and_not_nothing() -> None:
    def read(*flags: str) -> dict[str, object]:
        options = parse(Sampling, [*flags], prog="x", description="", example="")
        return options.changes()

    assert read("--guidance", "none", "--no-clip") == {"guidance": "none", "clip": False}
    assert read("--steps", "none") == read() == {}


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path: Path) -> None:
    path = yaml(tmp_path, "count: 5\nratio: 0.2\npart: {learning_rate: 1}")
    got = options("--config", str(path), "--count", "6", "--no-part.warmup", "--sizes=7,8")
    assert got == Options(count=6, ratio=0.2, sizes=(7, 8), part=Section(1.0, False))
    assert options() == Options()
    assert options("--part.learning-rate", "1e-4").part.learning_rate == 1e-4


def test_a_tuple_is_also_the_flag_again_and_again_and_what_has_no_flag() -> None:
    assert options("--sizes", "3", "--count", "1", "--sizes", "4,5").sizes == (3, 4, 5)
    texts = {"prog": "tool verb", "description": "", "example": "", "rest": "sizes"}
    got = parse(Options, ["3", "--count", "4", "5"], **texts)
    assert (got.sizes, got.count) == ((3, 5), 4)
    with pytest.raises(UserError, match="unknown argument '--siz'"):
        parse(Options, ["3", "--siz", "4"], **texts)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cuont", "3"], "unknown argument '--cuont'; did you mean '--count'?"),
        (["--coun", "3"], "unknown argument '--coun'"),
        (["--count", "three"], "count: expected int, got 'three'"),
        (["--count"], "expected one argument"),
        (["--kind", "x"], "kind: 'x' is none of ddim, ddpm"),
        (["stray"], "unknown argument 'stray'"),
        (["--sizes", "1,x"], "sizes: expected int, got 'x'"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_with_a_suggestion(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        options(*argv)
    assert message in str(caught.value)
    assert caught.value.code == USAGE


@dataclass(frozen=True)
class Named(Options):
    """Options with names."""

    folders: dict[str, str] = field(default_factory=dict)
    """Folders by name."""


def test_names_with_values_come_from_a_flag_or_a_section(tmp_path: Path) -> None:
    def named(*argv: str) -> Named:
        return parse(Named, [*argv], prog="tool", description="Do it.", example="tool")

    assert named("--folders", "a=x/y,b=z").folders == {"a": "x/y", "b": "z"}
    path = yaml(tmp_path, "folders: {a: 010, 2: z}")
    assert named("--config", str(path)).folders == {"a": "010", "2": "z"}
    assert named().folders == {}
    variants = {"a": "sample.interval=0.3,1", "b": "per_image=1"}
    assert named("--folders", "a=sample.interval=0.3,1,b=per_image=1").folders == variants
    for wrong in ("a", "a=x,b", "a=x,a=y", "a,b=x=1"):
        with pytest.raises(UserError, match="name=value"):
            named("--folders", wrong)
    with pytest.raises(UserError, match="names with values"):
        named("--config", str(yaml(tmp_path, "folders: [a, b]")))


def test_one_key_of_a_section_leaves_its_others_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = ReidTable()
    table = from_dict(ReidTable, {"student": {"finetune": {"steps": "7"}}})
    assert table.student.finetune == replace(plain.student.finetune, steps=7)
    assert table.student.standard == plain.student.standard
    table = from_dict(ReidTable, {"selection": {"network": {"lr": 1e-3}}})
    assert table.selection.network == replace(plain.selection.network, lr=1e-3)
    with pytest.raises(SystemExit):
        parse(ReidTable, ["--help"], prog="x", description="", example="x")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"rises. (default: {plain.student.standard.warmup_steps})" in shown
    assert f"(amsgrad). (default: {plain.student.finetune.lr})" in shown
    assert f"(default: {plain.selection.network.steps})" in shown


def test_help_has_the_texts_of_inherited_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Named, ["--help"], prog="tool", description="Do it.", example="tool")
    shown = " ".join(capsys.readouterr().out.split())
    assert "A word, 100 % free. (default: x)" in shown
    assert "Folders by name. (default: none)" in shown


def test_a_wrong_key_in_the_file_is_reported_with_the_file(tmp_path: Path) -> None:
    path = yaml(tmp_path, "cuont: 5")
    with pytest.raises(UserError, match=r"a\.yaml: unknown key 'cuont'"):
        options("--config", str(path))


def test_a_setting_of_the_file_may_need_one_of_the_flags(tmp_path: Path) -> None:
    texts = {"prog": "tool", "description": "", "example": ""}
    command = ["--config", str(yaml(tmp_path, "train: {patience: 4}"))]
    config = parse(PIDMConfig, [*command, "--train.withhold", "0.1"], **texts)
    assert (config.train.patience, config.train.withhold) == (4, 0.1)
    with pytest.raises(UserError, match=r"a\.yaml: train\.patience: needs train\.withhold"):
        parse(PIDMConfig, command, **texts)
    with pytest.raises(UserError, match=r"^train\.steps: expected int"):
        parse(PIDMConfig, [*command, "--train.withhold", "0.1", "--train.steps", "x"], **texts)
    command = ["--config", str(yaml(tmp_path, "train: 3"))]
    with pytest.raises(UserError, match=r"a\.yaml: train: expected a section"):
        parse(PIDMConfig, [*command, "--train.steps", "3"], **texts)


def test_help_names_every_flag_with_its_text_and_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as leaving:
        options("--help")
    assert leaving.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        *("Do it.", "--config FILE", "A word, 100 % free. (default: x)", "--part.learning-rate"),
        *("{ddim,ddpm}", "(default: 1,2)", "(default: none)", "--no-part.warmup", "tool --count 4"),
    ):
        assert part in shown


@pytest.mark.parametrize("name", ["toy_strict", "market1501_strict"])
def test_configurations_of_strict_generators_load_and_withhold_people(name: str) -> None:
    config = load_config(PIDMConfig, CONFIGS / f"{name}.yaml")
    assert config.train.withhold == 0.05
    assert config.train.patience > 0


@pytest.mark.parametrize("name", ["reid_toy", "reid_market1501", "demo", "toy_hardness"])
def test_configurations_of_tables_load_and_name_known_rows(name: str) -> None:
    table = load_config(ReidTable, CONFIGS / f"{name}.yaml")
    assert list(rows(table)) == [row for row in ROWS if row in table.rows]
