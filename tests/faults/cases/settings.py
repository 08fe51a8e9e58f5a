"""Configuration files and command lines."""

from __future__ import annotations

from pathlib import Path

from faults.cases import BAD_DATA, DONE, USAGE, Case, reading, sparse
from faults.cases.images import MARKET
from faults.cases.lists import POSES

ALIASES = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [*{chr(97 + k)}, *{chr(97 + k)}]\n" for k in range(20)
)
DEFAULTS = "lr 2e-05 batch 8 data data/market1501"


def yaml(name: str, text: str | bytes, says: str, code: int = USAGE) -> Case:
    """A configuration of a training."""
    return Case(f"YAML: {name}", {"c.yaml": text}, reading("settings", "c.yaml"), code, says)


YAML = (
    Case("YAML: no such file", {}, reading("settings", "c.yaml"), BAD_DATA, "no such file"),
    Case("YAML: a folder", lambda folder: (folder / "c.yaml").mkdir(),
         reading("settings", "c.yaml"), BAD_DATA, "no such file"),
    Case("YAML: 1 MiB", sparse("c.yaml", 1 << 20), reading("settings", "c.yaml"), BAD_DATA,
         "larger than 256 KiB"),
    yaml("empty", "", "expected keys and values"),
    yaml("a list", "- 1\n", "expected keys and values"),
    yaml("text", "hello", "expected keys and values"),
    yaml("not YAML", "a: [", "not valid YAML"),
    yaml("a tab", "train:\n\tlr: 1\n", "not valid YAML"),
    yaml("bytes", b"\xff\xfe\0\0", "not UTF-8 text", BAD_DATA),
    yaml("control characters", "data: \0\n", "not valid YAML"),
    yaml("an escape beyond Unicode", 'data: "\\UFFFFFFFF"\n', "not valid YAML"),
    yaml("tag that calls", "data: !!python/object/apply:os.system ['touch canary']\n", "tags"),
    yaml("tag that imports", "data: !!python/module:antigravity ''\n", "tags"),
    yaml("alias", "data: &a x\nkeypoints: *a\n", "anchors and aliases"),
    yaml("a bomb of aliases", ALIASES, "anchors and aliases"),
    yaml("merge key", "<<: {data: x}\n", "unknown key '<<'"),
    yaml("nested 200,000 deep", "a: " + "[" * 200_000, "nested deeper than 32"),
    yaml("33 sections deep", "".join(" " * k + "a:\n" for k in range(40)), "nested deeper"),
    yaml("20,000 keys", "".join(f"k{k}: 1\n" for k in range(20_000)), "unknown key 'k0'"),
    yaml("a key twice", "data: x\ndata: y\n", "'data' stands twice"),
    yaml("a key of a section twice", "train: {lr: 1, lr: 2}\n", "'lr' stands twice"),
    yaml("a list for a key", "? [a, b]\n: 1\n", "not valid YAML"),
    yaml("typo", "train: {lerning_rate: 1}\n", "train.unknown key 'lerning_rate'"),
    yaml("typo of a section", "trian: {lr: 1}\n", "did you mean 'train'"),
    yaml("typo of a key", "train: {batchsize: 4}\n", "did you mean 'batch_size'"),
    yaml("a key of another section", "lr: 1\n", "unknown key 'lr'"),
    yaml("text for a number", "train: {lr: fast}\n", "train.lr: expected float"),
    yaml("a fraction for a whole number", "train: {steps: 1.5}\n", "train.steps: expected int"),
    yaml("nothing for a number", "train: {steps: }\n", "train.steps: expected int"),
    yaml("a list for a number", "train: {steps: [1]}\n", "train.steps: expected int"),
    yaml("a section for a number", "train: {steps: {a: 1}}\n", "train.steps: expected int"),
    yaml("a number for a section", "train: 7\n", "train: expected a section"),
    yaml("NaN", "train: {lr: .nan}\n", "train.lr: expected float"),
    yaml("infinity", "train: {lr: inf}\n", "train.lr: expected float"),
    yaml("1e400", "train: {lr: 1e400}\n", "train.lr: expected float"),
    yaml("a number of 9,000 digits", f"train: {{steps: {'9' * 9000}}}\n", "expected int"),
    yaml("yes for a switch", "train: {cosine: yes}\n", "train.cosine: expected bool"),
    yaml("a word that is no choice", "sample: {sampler: dimm}\n", "'dimm' is none of ddim"),
    yaml("one side of a size", "model: {size: 128}\n", "model.size: expected a list"),
    yaml("three sides of a size", "model: {size: [1, 2, 3]}\n", "model.size: expected a list"),
    yaml("a size of nothing", "model: {size: [0, 64]}\n", "model.size: 0 is outside 8"),
    yaml("a size of a million", "model: {size: [1000000, 64]}\n", "is outside 8 ... 2048"),
    yaml("a billion channels", "model: {channels: 1000000000}\n", "is outside 32 ... 4096"),
    yaml("33 channels", "model: {channels: 33}\n", "not a multiple of 32"),
    yaml("a billion blocks", "model: {blocks_per_level: 1000000000}\n", "is outside 1 ... 16"),
    yaml("no levels", "model: {channel_mults: []}\n", "is outside 1 ... 16"),
    yaml("levels of nothing", "model: {channel_mults: [0, 1]}\n", "is outside 1 ... 16"),
    yaml("texture where no level is", "model: {texture_factors: [3]}\n", "no factors"),
    yaml("no batch", "train: {batch_size: 0}\n", "must be at least 1"),
    yaml("negative steps", "train: {steps: -5}\n", "must be at least 1"),
    yaml("one checkpoint kept", "train: {keep: 1}\n", "must be at least 2"),
    yaml("eta of a half", "train: {eta: 0.5}\n", "outside 0 ... 1/3"),
    yaml("all people withheld", "train: {withhold: 1}\n", "outside 0 ... 1"),
    yaml("no noise levels", "diffusion: {T: 0}\n", "is outside 2 ..."),
    yaml("negative noise", "diffusion: {beta_first: -1}\n", "is outside"),
    yaml("a batch of a billion images", "sample: {batch_size: 1000000000}\n", "is outside 1 ..."),
    yaml("no steps of sampling", "sample: {steps: 0}\n", "must be at least 1"),
    yaml("1e-4, which YAML calls text", "train: {lr: 1e-4}\n", "lr 0.0001", DONE),
    yaml("010, which YAML calls 8", "train: {batch_size: 010}\n", "batch 10", DONE),
    yaml("no, which YAML calls False", "data: no\n", "data no\n", DONE),
    yaml("BOM and CRLF", b"\xef\xbb\xbfdata: x\r\n", "data x\n", DONE),
    yaml("nothing but a comment and braces", "# defaults\n{}\n", DEFAULTS, DONE),
    Case("YAML: no rows of a table", {"c.yaml": "rows: []\n"}, reading("table", "c.yaml"), USAGE,
         "rows: at least one is needed"),
    Case("YAML: text for a ratio", {"c.yaml": "ratios: [half]\n"}, reading("table", "c.yaml"),
         USAGE, "ratios: expected float"),
)  # fmt: skip

ON_PEOPLE = "tools/synthesize.py", "--data", "market", "--keypoints", "k.csv"
SYNTHESIZE = *ON_PEOPLE, "--run", "none"
IMPORT = *ON_PEOPLE, "--import-from", "market/market1501/bounding_box_train"
PEOPLE = {**{f"market/{path}": data for path, data in MARKET.items()}, **POSES}


def flags(name: str, *command: str, says: str, code: int = USAGE) -> Case:
    """A tool with these flags, beside a small data set."""
    return Case(f"flags: {name}", PEOPLE, command, code, says)


def synthesize(name: str, *given: str, says: str, code: int = USAGE) -> Case:
    """tools/synthesize.py with these flags."""
    return flags(name, *SYNTHESIZE, *given, says=says, code=code)


def _occupied(folder: Path) -> None:
    Case("", PEOPLE | {"out/letter.txt": b"mine"}, (), 0, "").make(folder)


MAKE_PAIRS = "tools/make_pairs.py"
FLAGS = (
    flags("a misspelt flag", MAKE_PAIRS, "--keypoint", "k.csv", says="did you mean '--keypoints'"),
    flags("a flag without its value", MAKE_PAIRS, "--keypoints", says="expected one argument"),
    flags("a word too many", MAKE_PAIRS, "k.csv", says="unknown argument 'k.csv'"),
    flags("a shortened flag", MAKE_PAIRS, "--key", "k.csv", says="unknown argument '--key'"),
    flags("text for a number", MAKE_PAIRS, "--sample", "many", says="sample: expected int"),
    flags("a negative number of pairs", MAKE_PAIRS, "--keypoints", "k.csv", "--out", "p.csv",
          "--sample", "-1", says="must be at least 0"),
    flags("a seed of 40 bits", MAKE_PAIRS, "--keypoints", "k.csv", "--out", "p.csv", "--seed",
          str(1 << 40), says="the seed 32 bits"),
    flags("output onto the input", MAKE_PAIRS, "--keypoints", "k.csv", "--out", "k.csv",
          says="give --out"),
    flags("output into a file as if a folder", MAKE_PAIRS, "--keypoints", "k.csv", "--out",
          "k.csv/p.csv", says="k.csv", code=4),
    flags("no such configuration", "tools/train_pidm.py", "--config", "none.yaml",
          says="none.yaml: no such file", code=BAD_DATA),
    flags("an image for a configuration", "tools/train_pidm.py", "--config",
          f"market/{next(iter(MARKET))}", says="not UTF-8 text", code=BAD_DATA),
    flags("no kind of table", "tools/reproduce_table.py", "tables", says="is not a table"),
    flags("no verb of the study", "tools/user_study.py", "make", says="neither build nor score"),
    flags("no verb of editing", "tools/edit_image.py", "paint", says="begin with draw"),
    flags("a table of no methods", "tools/reproduce_table.py", "images", "--real", "market",
          says="methods: at least one"),
    flags("a method that leads out", "tools/reproduce_table.py", "images", "--real", "market",
          "--methods", "../x=market", says="does not serve as the name"),
    flags("nothing to score", "tools/evaluate_images.py", "--real", "market",
          says="generated: a folder"),
    flags("no weights of an estimator", "tools/extract_poses.py", "--data", "market", "--out",
          "p.csv", "--weights", "none", says="no weights there", code=4),
    flags("answers of nobody", "tools/user_study.py", "score", says="score needs the files"),
    synthesize("ratio 40", "--ratio", "40", says="did you mean 0.4"),
    synthesize("ratio -0.1", "--ratio", "-0.1", says="is not between 0 and 1"),
    synthesize("ratio 101", "--ratio", "101", says="is not between 0 and 1"),
    synthesize("ratio NaN", "--ratio", "nan", says="ratio: expected float"),
    synthesize("shard 0/3", "--shard", "0/3", says="is not K/N"),
    synthesize("shard 4/3", "--shard", "4/3", says="is not K/N"),
    synthesize("shard x", "--shard", "x", says="is not K/N"),
    synthesize("fill to nothing", "--fill-to", "0", says="neither 'full' nor a number"),
    synthesize("fewer than no images", "--per-image", "-1", says="is negative"),
    synthesize("too many images", "--per-image", "10000", says="the limit is 9,999"),
    synthesize("no such model", says="no trained model there", code=BAD_DATA),
    synthesize("no such keypoints", "--keypoints", "none.csv", says="no such file", code=BAD_DATA),
    synthesize("no such data", "--data", "none", says="no such folder",
               code=BAD_DATA),
    flags("output is the data set", *IMPORT, "--out", "market", says="is the data set itself"),
    Case("flags: output holds something else", _occupied, (*IMPORT, "--out", "out"), USAGE,
         "is not empty and not an augmented folder"),
)  # fmt: skip

CASES = (*YAML, *FLAGS)
