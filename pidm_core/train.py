"""The training loop of PIDM, a generator: each step is yielded, so that callers watch or stop it.

Order, flips, noise levels, noise and dropout are a pure function of (seed, step, rank), so no
random state is saved and resuming is exact. The same call on the same run folder resumes.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from pidm_core import __version__
from pidm_core.checkpoint import checkpoints, find_model
from pidm_core.config import PIDMConfig, TrainConfig
from pidm_core.data import Batch, Pairs, order
from pidm_core.datasets import read_people, withhold
from pidm_core.diffusion import Diffusion, drop_conditions, sample_images
from pidm_core.files import (
    BAD_DATA,
    ENVIRONMENT,
    TERMINATED,
    UserError,
    encode_png,
    read_json,
    write_bytes,
    write_json,
)
from pidm_core.folders import clear_leftovers, only_writer
from pidm_core.hardware import Placement, names_memory, place, to_uint8
from pidm_core.model import PIDM
from pidm_core.options import load_config, save_config, to_dict
from pidm_core.pose import pose_map
from pidm_core.progress import track
from pidm_core.seen import write_seen
from pidm_core.state import State

log = logging.getLogger(__name__)
HARMLESS = (
    "train.log_every",
    "train.sample_every",
    "train.save_every",
    "train.keep",
    "train.steps",
    "train.recompute",
    "train.bad_steps",
)
GRID_ROWS = 8
JUDGED_IMAGES = 256
MEMORY = (
    "run the same command again with --train.recompute, or train in another folder with a lower "
    "--train.batch-size"
)


Loss = Callable[[PIDM, Diffusion, PIDMConfig], nn.Module]
"""Makes the module that turns a batch x_s, x_p, y_0 into the means of L_mse and L_vlb."""


@dataclass(frozen=True)
class Progress:
    """One optimizer step that is done."""

    step: int
    loss: float  # Eq. 4, mean over the batch of all processes
    mse: float
    vlb: float
    images_per_second: float  # of all processes
    seconds: float  # since the step before, its saving and judging included
    skipped: bool  # loss or gradient are NaN or infinite: the weights stayed as they were
    stopping: int  # exit code if a signal asked to stop and the checkpoint is written, else 0


def check_sampling(config: PIDMConfig) -> None:
    """Raise UserError for settings that only a picture drawn hours later would refuse."""
    Diffusion(config.diffusion).timesteps(config.sample.steps, config.sample.spacing)


def load_pairs(config: PIDMConfig) -> Pairs:
    """The training pairs a configuration names."""
    return _divided_pairs(config)[0]


def _divided_pairs(config: PIDMConfig) -> tuple[Pairs, Pairs | None]:
    """The training pairs, and those of the withheld people that judge the model, if any."""
    people = read_people(config.data, keypoints=config.keypoints, pairs=config.pairs)
    parts = [people]
    if config.train.withhold:
        parts = list(withhold(people, config.train.withhold, seed=config.train.seed))
    pairs = [
        Pairs(p.records, p.keypoints, size=config.model.size, pairs=p.pairs, view=p.view)
        for p in parts
    ]
    return pairs[0], pairs[1] if config.train.withhold else None


def train(
    config: PIDMConfig,
    run: Path,
    *,
    loss: Loss | None = None,
    about: str = "",
    notes: Mapping[str, Any] | None = None,
) -> Iterator[Progress]:
    """Train `config` in the run folder, from its newest checkpoint on, and yield every step.

    loss: what is minimised (default: Eq. 4); about: more lines for the model card; notes: JSON
    files to be written beside config.yaml.

    Writes config.yaml, env.json, seen.json, metrics.jsonl, samples/, checkpoints/ and model/ (with
    train.withhold the best saved one, judged in withheld.json; else the last).
    SIGINT and SIGTERM finish the step and save. Raises UserError for steps of sampling that cannot
    be, for a run folder that holds another configuration or a model without its run or in which
    another process trains, for other images, joints or pairs than it was begun with, for
    train.bad_steps steps in a row whose loss is not finite (BAD_DATA), where memory does not
    suffice (ENVIRONMENT), and for more steps where the model kept is the end of a shorter training.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    accelerator.gradient_accumulation_steps = 1  # whatever `accelerate config` left: ours decides
    if (run / "config.json").is_file():
        raise UserError(f"{run}: a model without its run, which cannot go on; give another --out")
    with ExitStack() as held, names_memory(MEMORY):
        _on_the_first(accelerator, lambda: held.enter_context(_alone(run)))
        yield from _train(config, run, accelerator, loss or HybridLoss, about, notes or {})


def _train(
    config: PIDMConfig,
    run: Path,
    accelerator: Accelerator,
    make_loss: Loss,
    about: str,
    notes: Mapping[str, Any],
) -> Iterator[Progress]:
    check_sampling(config)
    placement = place(config.train.precision, accelerator.device)
    state = State(config, placement, about=about)
    pairs, withheld = _divided_pairs(config)
    parts = [pairs, withheld] if withheld else [pairs]
    _on_the_first(accelerator, lambda: _open_run(config, run, placement, accelerator, parts, notes))
    world, rank = accelerator.num_processes, accelerator.process_index
    start = state.resume(run, world)
    _same_start(accelerator, run, start)
    if start == 0 and config.train.init:
        state.start_from(config.train.init)
    judge = _Judge(run, start, state, withheld) if withheld else None
    if judge and start < config.train.steps:
        judge.forget_end(start, accelerator)
    if judge and (judge.exhausted() or start >= config.train.steps):
        judge.refuse_none()
        return
    loss_of = accelerator.prepare(make_loss(state.model, Diffusion(config.diffusion), config))
    grids = accelerator.is_main_process and config.train.sample_every > 0
    share = state.batch // world

    with _stop_signal() as stop, _Batches(pairs, config.train, share, world, rank) as batches:
        clock, metrics = time.monotonic(), _Metrics(run, start)
        saved, in_a_row, due = start, 0, False
        for step in range(start, config.train.steps):
            seed = _step_seed(config.train.seed, step, rank)
            torch.manual_seed(seed)
            mse, vlb = loss_of(*_tensors(batches[step], placement))
            accelerator.backward(mse + vlb)
            # The one wait of a step for the device: all processes hear the same of all.
            heard = torch.stack([mse, vlb, state.clip(), mse.new_tensor(stop())]).detach()
            mse_sum, vlb_sum, norm, signals = accelerator.reduce(heard).tolist()
            skipped = not math.isfinite(mse_sum + vlb_sum + norm)
            in_a_row = in_a_row + 1 if skipped else 0
            if not skipped:
                state.update(step)
            done, last = step + 1, step + 1 == config.train.steps
            stopped = (stop() or TERMINATED) if signals and not skipped else 0
            stopping = bool(stopped) or last
            seconds, clock = time.monotonic() - clock, time.monotonic()
            progress = Progress(
                step=done,
                loss=(mse_sum + vlb_sum) / world,
                mse=mse_sum / world,
                vlb=vlb_sum / world,
                images_per_second=state.batch / max(seconds, 1e-9),
                seconds=seconds,
                skipped=skipped,
                stopping=stopped,
            )
            if in_a_row == config.train.bad_steps or (last and in_a_row == done):
                if accelerator.is_main_process:
                    metrics.add(progress, write=True)
                raise _no_finite_loss(run, in_a_row, done, saved)
            due |= last or done % config.train.save_every == 0
            regular = due and (last or not skipped)  # put off until the loss is a number again
            due &= not regular
            saving = stopping or regular
            saved = done if saving else saved
            # A signal's saving is not judged: it must not change which model is kept.
            keep = judge is None or (regular and judge.better(done, accelerator))
            stopping |= judge is not None and judge.exhausted()
            if accelerator.is_main_process:
                metrics.add(progress, write=stopping or done % config.train.log_every == 0)
                if saving:
                    state.save(run, done, model=keep)
                if grids and (last or done % config.train.sample_every == 0):
                    path = run / "samples" / f"step_{done:08d}.png"
                    write_bytes(path, encode_png(sample_grid(state, pairs)))
            accelerator.wait_for_everyone()
            if judge and stopping and not stopped:
                judge.refuse_none()
            yield progress
            if stopping:
                break


def watch(steps: Iterator[Progress], *, total: int, label: str) -> Iterator[Progress]:
    """Pass the steps on and show how far the training is."""
    return track(
        steps,
        total=total,
        label=label,
        unit="steps",
        each=1,
        at=lambda p: p.step,
        note=lambda p: f"{p.images_per_second:.1f} images/s, loss {p.loss:.4f}",
    )


class HybridLoss(nn.Module):
    """Eq. 4 as a module, so that encoder and denoiser are one call for data-parallel training."""

    def __init__(self, model: PIDM, diffusion: Diffusion, config: PIDMConfig) -> None:
        super().__init__()
        self.model, self.diffusion, self.eta = model, diffusion, config.train.eta

    def forward(self, x_s: Tensor, x_p: Tensor, y_0: Tensor) -> tuple[Tensor, Tensor]:
        """Mean L_mse and L_vlb of a batch, with condition dropout."""
        count, device = len(y_0), y_0.device
        dropped = drop_conditions(count, self.eta, device=device)
        x_s = x_s.masked_fill(dropped.style[:, None, None, None], 0)
        x_p = x_p.masked_fill(dropped.pose[:, None, None, None], 0)
        t = torch.randint(self.diffusion.config.T, (count,), device=device)
        clean = y_0.float()
        eps = torch.randn_like(clean)
        y_t = self.diffusion.q_sample(clean, t, eps)
        out = self.model(y_t.to(y_0.dtype), t, x_p, self.model.encode(x_s))
        losses = self.diffusion.losses(out, clean, y_t, t, eps)
        return losses.mse.mean(), losses.vlb.mean()


class _Judge:
    """Which of the saved models denoises the withheld people best: withheld.json, step -> loss."""

    def __init__(self, run: Path, start: int, state: State, pairs: Pairs) -> None:
        self.path, self.state, self.pairs = run / "withheld.json", state, pairs
        known = read_json(self.path) if self.path.is_file() else {}
        self.losses = {
            int(step): math.inf if loss is None else loss
            for step, loss in known.items()
            if int(step) <= start
        }

    def forget_end(self, step: int, accelerator: Accelerator) -> None:
        """Forget a saving that only the end of a shorter training, at this step, had judged.

        Of every `save_every` steps one saving is judged, the first or, put off, a later one.
        """
        options = self.state.config.train
        first = step // options.save_every * options.save_every
        judged = any(first <= other < step for other in self.losses)
        if step not in self.losses or (first and not judged):
            return
        others = {other: loss for other, loss in self.losses.items() if other != step}
        if step == self.best() and min(others.values(), default=math.inf) < math.inf:
            raise UserError(  # for the best of the others was replaced
                f"{self.path.parent}: the model kept is that of step {step}, where a shorter "
                f"training ended; one of {options.steps} steps would not have judged it, so train "
                "that in another folder"
            )
        self.losses = others
        if accelerator.is_main_process:
            self._write()

    def best(self) -> int:
        """The step whose model is kept, the first of equal ones (0 = none was judged)."""
        return min(self.losses, key=lambda step: (self.losses[step], step), default=0)

    def better(self, step: int, accelerator: Accelerator) -> bool:
        """Judge the averaged weights of this step: are they the best so far?"""
        found = self.loss()
        loss = [found if math.isfinite(found) else math.inf]
        broadcast_object_list(loss)  # of several processes the first decides
        best = min(self.losses.values(), default=math.inf)
        self.losses[step] = loss[0]
        if accelerator.is_main_process:
            self._write()
        return loss[0] < best

    def _write(self) -> None:
        finite = {step: x if x < math.inf else None for step, x in self.losses.items()}
        write_json(self.path, finite)

    def exhausted(self) -> bool:
        """Whether the last `patience` savings brought nothing better."""
        patience, best = self.state.config.train.patience, self.best()
        return 0 < patience <= sum(step > best for step in self.losses)

    def refuse_none(self) -> None:
        """UserError (BAD_DATA) where a training ends without a model that was worth keeping."""
        if self.losses and min(self.losses.values()) == math.inf:
            raise UserError(
                f"{self.path}: at none of {len(self.losses)} savings had the withheld people a "
                "finite loss, so no model was kept; lower train.lr in another folder",
                BAD_DATA,
            )

    @torch.inference_mode()
    def loss(self) -> float:
        """Mean L_mse with both conditions, on the same pairs, noise and noise levels every time."""
        config, placement = self.state.config, self.state.placement
        model, diffusion = self.state.averaged(), Diffusion(config.diffusion)
        size, total = config.train.batch_size, 0.0
        rounds = math.ceil(JUDGED_IMAGES / size)
        rng = np.random.default_rng(config.train.seed)
        # evenly over the pairs, which are sorted by identity: everybody withheld has a say
        chosen = rng.permutation(np.linspace(0, len(self.pairs) - 1, rounds * size).astype(int))
        for k, indices in enumerate(chosen.reshape(rounds, size)):
            x_s, x_p, y_0 = _tensors(self.pairs.batch(indices, rng, max_scale=0.0), placement)
            clean = y_0.float()
            levels = (np.arange(size) + (k + 0.5) / rounds) * config.diffusion.T / size
            t = torch.from_numpy(levels.astype(np.int64)).to(clean.device)
            eps = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(clean.device)
            y_t = diffusion.q_sample(clean, t, eps)
            out = model(y_t.to(y_0.dtype), t, x_p, model.encode(x_s))
            total += float(diffusion.losses(out, clean, y_t, t, eps).mse.mean())
        return total / rounds


@torch.inference_mode()
def sample_grid(state: State, pairs: Pairs) -> np.ndarray:
    """A picture, one row a pair: source, pose, generated, true image."""
    config, placement = state.config, state.placement
    places = np.linspace(0, len(pairs) - 1, GRID_ROWS).astype(int)
    batch = pairs.batch(places, np.random.default_rng(0), max_scale=0.0)
    x_s, x_p, _ = _tensors(batch, placement)
    generator = torch.Generator().manual_seed(0)

    def noise(step: int) -> Tensor:
        return torch.randn(x_s.shape, generator=generator).to(placement.device)

    y_T = noise(0)
    model = state.averaged()
    y = sample_images(
        model,
        Diffusion(config.diffusion),
        texture=model.encode(x_s),
        x_p=x_p,
        y_T=y_T,
        settings=config.sample,
        noise=noise,
    )
    columns = [batch.source, to_uint8(2 * x_p[:, :3] - 1), to_uint8(y), batch.target]
    return np.concatenate([np.concatenate(list(c), axis=0) for c in columns], axis=1)


# ---------------------------------------------------------------- what goes in


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _tensors(batch: Batch, placement: Placement) -> tuple[Tensor, Tensor, Tensor]:
    """x_s, x_p and y_0 of a batch on the device."""
    keypoints = torch.from_numpy(batch.keypoints).to(placement.device)
    height, width = batch.target.shape[1:3]
    x_p = placement.tensor(pose_map(keypoints, (height, width)))
    return placement.images(batch.source), x_p, placement.images(batch.target)


class _Batches:
    """The batches of each step, the next one prepared in a thread while this one trains."""

    def __init__(
        self, pairs: Pairs, options: TrainConfig, share: int, world: int, rank: int
    ) -> None:
        self.pairs, self.options = pairs, options
        self.share, self.world, self.rank = share, world, rank
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def __getitem__(self, step: int) -> Batch:
        ready = self._next
        batch = ready[1].result() if ready and ready[0] == step else self._make(step)
        self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return batch

    def _make(self, step: int) -> Batch:
        options = self.options
        indices = order(
            len(self.pairs),
            seed=options.seed,
            position=step * self.share * self.world,
            batch_size=self.share,
            world=self.world,
            rank=self.rank,
        )
        rng = np.random.default_rng([options.seed, step, self.rank])
        return self.pairs.batch(indices, rng, max_scale=options.max_scale)

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- what comes out


def _on_the_first(accelerator: Accelerator, act: Callable[[], None]) -> None:
    """Let the first process act; its UserError is raised in all, so that none waits for it."""
    refused: list[UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            act()
        except UserError as error:
            refused = [error]
    broadcast_object_list(refused)
    if refused[0]:
        raise refused[0]


def _open_run(
    config: PIDMConfig,
    run: Path,
    placement: Placement,
    accelerator: Accelerator,
    parts: Sequence[Pairs],
    notes: Mapping[str, Any],
) -> None:
    """Write config.yaml, env.json, seen.json and notes, or refuse a folder of other settings."""
    path = run / "config.yaml"
    begun = bool(checkpoints(run)) or (run / "model").is_dir()  # else nothing was trained with them
    if config.train.init and not begun:
        find_model(config.train.init)
    if begun and path.is_file():
        old, new = (_flat(to_dict(c)) for c in (load_config(PIDMConfig, path), config))
        harmless = set(HARMLESS)
        if config.train.cosine:
            harmless.remove("train.steps")
        if config.train.withhold:  # the model kept is one of those saved
            harmless.remove("train.save_every")
        differences = [
            f"{key} was {old[key]}, is {new[key]}"
            for key in new
            if old[key] != new[key] and key not in harmless
        ]
        if differences:
            raise UserError(
                f"{run}: holds a run with other settings ({'; '.join(differences[:5])}); "
                "give another --out (and --train.init with this folder to go on from its model), "
                "or the old settings"
            )
    for name, value in notes.items():
        write_json(run / name, value)
    save_config(config, path)
    images = [record for part in parts for record in part.records]
    write_seen(run, config, images, begun=begun)
    environment = {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": str(placement),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "pairs_sha256": [part.digest() for part in parts],
    }
    if begun:
        _same_pairs(config, run, environment["pairs_sha256"])
    write_json(run / "env.json", environment)


def _same_pairs(config: PIDMConfig, run: Path, digests: object) -> None:
    """Refuse other pairs or joints than a run was begun with; earlier runs noted none."""
    path = run / "env.json"
    known = read_json(path) if path.is_file() else {}
    if isinstance(known, dict) and known.get("pairs_sha256", digests) != digests:
        raise UserError(
            f"{config.data}: the pairs or their joints are not those that {run} was begun with; "
            "restore the keypoint file and the pair list, or train anew in another folder",
            BAD_DATA,
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


class _Metrics:
    """metrics.jsonl: means since the last line; lines after the resumed step are taken back."""

    def __init__(self, run: Path, start: int) -> None:
        self.path = run / "metrics.jsonl"
        self._since: list[Progress] = []
        text = self.path.read_text(errors="replace") if self.path.is_file() else ""
        kept = [line for line in text.splitlines() if _up_to(line, start)]
        write_bytes(self.path, "".join(f"{line}\n" for line in kept).encode())

    def add(self, progress: Progress, *, write: bool) -> None:
        self._since.append(progress)
        if not write:
            return
        good = [p for p in self._since if not p.skipped]
        means = {
            name: float(np.mean([getattr(p, name) for p in good])) if good else None
            for name in ("loss", "mse", "vlb", "images_per_second")
        }
        counts = {
            "seconds": sum(p.seconds for p in self._since),
            "skipped": len(self._since) - len(good),
        }
        with self.path.open("a") as file:
            file.write(json.dumps({"step": progress.step, **means, **counts}) + "\n")
        self._since = []


def _up_to(line: str, step: int) -> bool:
    """Whether a line of metrics.jsonl is of this step or before; no line that a kill tore is."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (KeyError, TypeError, ValueError):
        return False


# ---------------------------------------------------------------- what may come between


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Be the only process that writes in the run folder, and clear up after those that died."""
    with only_writer(run):
        for folder in (run, run / "checkpoints", run / "samples"):
            clear_leftovers(folder)
        yield


def _same_start(accelerator: Accelerator, run: Path, start: int) -> None:
    """Refuse processes that do not see the same run folder (ENVIRONMENT)."""
    first = [start]
    broadcast_object_list(first)
    if first[0] != start:
        raise UserError(
            f"{run}: this process finds step {start} there and the first one step {first[0]}; all "
            "machines must share the folder",
            ENVIRONMENT,
        )


def _no_finite_loss(run: Path, times: int, step: int, saved: int) -> UserError:
    advice = f" and train on in a new folder with --train.init {run}" if saved else ""
    return UserError(
        f"{run}: no finite loss in {times} steps up to step {step}; the run is back at step "
        f"{saved}; lower train.lr{advice}",
        BAD_DATA,
    )


@contextmanager
def _stop_signal() -> Iterator[Callable[[], int]]:
    """Between steps, tell the exit code if SIGINT or SIGTERM came; a second ends at once."""
    received: list[int] = []

    def handle(signum: int, frame: object) -> None:
        if received:
            raise SystemExit(128 + signum)
        received.append(128 + signum)

    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
