"""The generators that we can name: PIDM from a run folder, and the oracle that draws the truth."""

from __future__ import annotations

from pathlib import Path

from pidm_core import PIDMConfig, Sampling, UserError, load_config, to_dict, toy_market
from pidm_reid.synthesize import Generator

BUNDLED, BUNDLED_DATA = "toy_market", Path("data/toy_market")


def newest_run(runs: Path = Path("runs")) -> str:
    """The run folder whose model was written last, else the bundled model; UserError if neither."""
    models = sorted(runs.glob("*/model/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if models:
        return str(models[-1].parent.parent)
    from pidm_core import PIDMPipeline

    try:
        PIDMPipeline.from_pretrained(BUNDLED)
    except UserError as error:
        raise UserError(
            f"no trained model in {runs}/ and none bundled; train one with tools/train_pidm.py "
            "--config configs/toy_market.yaml"
        ) from error
    return BUNDLED


def is_trained(run: str) -> bool:
    """Whether a model can be read from a run folder or bundled model."""
    from pidm_core import PIDMPipeline

    try:
        PIDMPipeline.from_pretrained(run)
    except UserError:
        return False
    return True


def pidm(run: str, *, sampling: Sampling, saw: str = "unknown", mark: bool = True) -> Generator:
    """PIDM as a generator: a run folder or bundled model, its sampling, what it was trained on."""
    from pidm_core import PIDMPipeline

    pipe = PIDMPipeline.from_pretrained(run).with_settings(**sampling.changes())
    settings = to_dict(pipe.settings)
    if pipe.settings.interval == (0.0, 1.0):
        del settings["interval"]  # folders from before it was a setting stay what they are
    return Generator(
        pipe.render,
        pipe.fingerprint,
        settings,
        size=pipe.size,
        batch_size=pipe.settings.batch_size,
        saw=saw,
        mark=mark,
    )


def run_data(run: str) -> tuple[str, str]:
    """Data folder and keypoint file that a run was trained on, as its config.yaml names them.

    The bundled model comes without its data; it goes with data/toy_market, drawn by the user.
    """
    if run == BUNDLED:
        if not BUNDLED_DATA.is_dir():
            raise UserError(
                f"no data: draw people with tools/make_toy_market.py --preset demo --out "
                f"{BUNDLED_DATA}, or give --data DIR"
            )
        return str(BUNDLED_DATA), ""
    if not (Path(run) / "config.yaml").is_file():
        from pidm_core import PIDMPipeline

        PIDMPipeline.from_pretrained(run)  # a folder misspelt has no model either, and is told so
        raise UserError(f"{run}: does not say which data it was trained on; give --data DIR")
    config = load_config(PIDMConfig, Path(run) / "config.yaml")
    return config.data, config.keypoints


def oracle(data: Path) -> Generator:
    """ToyMarket's own pen: the same plan drawn, the ceiling of what pose augmentation can bring."""
    version = f"toy_market {toy_market.VERSION} {toy_market.world_hash()}"
    render = toy_market.oracle_render(data)
    return Generator(render, version, {}, saw="drawn people", mark=False)  # by no trained one
