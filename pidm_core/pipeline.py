"""PIDMPipeline: images + poses + seeds -> images."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pidm_core.checkpoint import find_model, load_model
from pidm_core.config import DiffusionConfig, SampleConfig
from pidm_core.diffusion import Diffusion, Step, sample_images, unstyled
from pidm_core.files import UserError, load_image, resized, to_pixels
from pidm_core.hardware import Placement, names_memory, place, to_uint8
from pidm_core.keypoints import JOINTS
from pidm_core.model import PIDM, POSE_CHANNELS
from pidm_core.options import from_dict, to_dict
from pidm_core.pose import pose_map

Source = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Output:
    """What a pipeline returns."""

    images: np.ndarray  # uint8 (B, H, W, 3)


class PIDMPipeline:
    """A trained PIDM ready to draw people: `pipe(sources, keypoints, seeds=[0, 1]).images`."""

    def __init__(
        self,
        model: PIDM,
        diffusion: DiffusionConfig,
        *,
        settings: SampleConfig | None = None,
        fingerprint: str = "",
        placement: Placement | None = None,
    ) -> None:
        self.placement = placement or place()
        self.model = self.placement.module(model).eval()
        self.model.freeze()
        self.diffusion = Diffusion(diffusion)
        self.settings = settings or SampleConfig()
        self.fingerprint = fingerprint
        self.size: tuple[int, int] = model.config.size
        self.watch: Callable[[Step], object] | None = None
        with torch.inference_mode():
            like = self.placement.tensor(torch.zeros(1, 3, *self.size))
            self._absent = unstyled(self.model, like)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, placement: Placement | None = None
    ) -> PIDMPipeline:
        """Load a run folder, a model folder, or a bundled model by its name ("toy_market")."""
        model, diffusion, settings, digest = load_model(find_model(name))
        return cls(model, diffusion, settings=settings, fingerprint=digest, placement=placement)

    def with_settings(self, **changes: Any) -> PIDMPipeline:
        """The same pipeline with other sampling settings (fields of SampleConfig).

        Raises UserError for an unknown name, for a value that is none of the field's and for steps
        that the noise levels do not give.
        """
        settings = from_dict(SampleConfig, changes, "settings: ", self.settings)
        self.diffusion.timesteps(settings.steps, settings.spacing)
        other = object.__new__(PIDMPipeline)
        other.__dict__ = {**self.__dict__, "settings": settings}
        return other

    def watched(self, watch: Callable[[Step], object]) -> PIDMPipeline:
        """The same pipeline, which calls `watch` after each denoising step of each batch.

        A batch is padded to settings.batch_size. What `watch` raises ends the drawing.
        """
        other = self.with_settings()
        other.watch = watch
        return other

    def __call__(
        self,
        sources: Source | Sequence[Source] | None,
        keypoints: np.ndarray | None,
        *,
        seeds: Sequence[int] | None = None,
        **settings: Any,
    ) -> Output:
        """Draw each source's person in its target pose.

        sources: B paths, PIL images or uint8 (H, W, 3) arrays, resized to `size` if need be;
        keypoints: (B, 18, 2) px of the output frame, NaN = missing;
        seeds: B numbers (default 0, 1, …); settings: steps, w_p, w_s, guidance, sampler, …
        One source or one pose is used for all the others and all seeds. None instead of sources
        or keypoints leaves that to chance: one model draws from pose, style, both or neither.
        Raises UserError for counts that do not match and for poses of another shape.
        """
        pipe = self.with_settings(**settings) if settings else self
        images = None if sources is None else self._arrays(sources)
        poses = None if keypoints is None else _poses(keypoints)
        given = {"sources": images, "poses": poses}
        parts: dict[str, Sized] = {name: x for name, x in given.items() if x is not None}
        numbers = _matched(seeds, **parts)
        count = len(numbers)
        return Output(pipe._draw(_repeated(images, count), _repeated(poses, count), numbers))

    def render(
        self, sources: np.ndarray, keypoints: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        """uint8 (B, H, W, 3) sources, (B, 18, 2) px, B seeds -> uint8 (B, H, W, 3).

        The joint with whatever plans the images.
        Runs in batches of settings.batch_size, the last one padded, and draws the noise of each
        image from its own seed: an image does not depend on its neighbours.
        Raises UserError for counts that do not match, and for other sizes and shapes.
        """
        if sources.shape[1:] != (*self.size, 3):
            height, width = self.size
            raise UserError(f"sources are {sources.shape}, not (B, {height}, {width}, 3)")
        keypoints = _poses(keypoints)
        if not len(sources) == len(keypoints) == len(seeds):
            raise UserError(
                f"{len(sources)} sources, {len(keypoints)} poses, {len(seeds)} seeds do not match"
            )
        return self._draw(sources, keypoints, seeds)

    def _draw(
        self, sources: np.ndarray | None, keypoints: np.ndarray | None, seeds: Sequence[int]
    ) -> np.ndarray:
        @torch.inference_mode()
        def batch(rows: list[int]) -> np.ndarray:
            generators = [_generator(seeds[row]) for row in rows]
            if sources is None:
                x_s = self.placement.tensor(torch.zeros(len(rows), 3, *self.size))
            else:
                x_s = self.placement.images(sources[rows])
            return self._denoise(
                self.model.encode(x_s),
                None if keypoints is None else keypoints[rows],
                noise=lambda: [torch.randn(3, *self.size, generator=g) for g in generators],
            )

        return self._in_batches(batch, len(seeds))

    def edit_appearance(
        self,
        styles: Source | Sequence[Source],
        references: Source | Sequence[Source],
        masks: np.ndarray,
        keypoints: np.ndarray,
        *,
        soften: float = 0.0,
        seeds: Sequence[int] | None = None,
        **settings: Any,
    ) -> Output:
        """Redraw a region of each reference image in the appearance of its style image.

        styles, references: B images as in a call; masks: (B, H, W) or (H, W), true where to
        redraw; keypoints: (B, 18, 2) px, the references' own. Outside the mask the result equals
        the reference, pixel for pixel. `soften` px: width over which the redrawn region fades in
        behind the mask's edge. One of anything is used for all.
        """
        pipe = self.with_settings(**settings) if settings else self
        style, kept, poses = self._arrays(styles), self._arrays(references), _poses(keypoints)
        mask = np.asarray(masks, dtype=bool).reshape(-1, *np.shape(masks)[-2:])
        if mask.shape[1:] != self.size:
            raise UserError(f"the mask is {mask.shape[1:]}, the model draws {self.size}")
        numbers = _matched(seeds, styles=style, references=kept, masks=mask, poses=poses)
        count = len(numbers)
        style, kept, mask, poses = (
            np.broadcast_to(x, (count, *x.shape[1:])) for x in (style, kept, mask, poses)
        )
        weight = np.stack([_softened(one, soften) for one in mask])[..., None]  # (B, H, W, 1)

        @torch.inference_mode()
        def batch(rows: list[int]) -> np.ndarray:
            generators = [_generator(numbers[row]) for row in rows]
            y_ref = self.placement.images(kept[rows]).float()
            m = torch.from_numpy(weight[rows]).permute(0, 3, 1, 2).to(y_ref)
            first = [torch.randn(3, *self.size, generator=g) for g in generators]
            eps = torch.stack(first).to(y_ref)
            draws = iter([first])

            def noise() -> list[Tensor]:
                fresh = [torch.randn(3, *self.size, generator=g) for g in generators]
                return next(draws, fresh)

            def known(y_t: Tensor, t: Tensor) -> Tensor:
                return m * y_t + (1 - m) * self.diffusion.q_sample(y_ref, t, eps)

            texture = self.model.encode(self.placement.images(style[rows]))
            return pipe._denoise(texture, poses[rows], noise=noise, known=known)

        drawn = pipe._in_batches(batch, count)
        mixed = weight * drawn + (1 - weight) * kept
        return Output(np.rint(mixed).astype(np.uint8))

    def interpolate_style(
        self,
        a: Source,
        b: Source,
        keypoints: np.ndarray,
        frames: int,
        *,
        seeds: tuple[int, int] = (0, 1),
        **settings: Any,
    ) -> Output:
        """From the appearance of one image to that of another, in one pose: `frames` images.

        Linear interpolation of F_s at every scale, spherical of the two start noises (whose seeds
        are given). keypoints: (18, 2) px. Raises UserError for fewer than 2 frames and for the
        ddpm sampler, whose noise would make the frames jump.
        """
        pipe = self.with_settings(**settings) if settings else self
        if frames < 2:
            raise UserError(f"{frames} frames: an interpolation needs at least 2")
        if pipe.settings.sampler == "ddpm":
            raise UserError("style interpolation needs a sampler without noise: ddim or dpm++")
        ends, poses = self._arrays([a, b]), _poses(keypoints)
        if len(poses) != 1:
            raise UserError(f"{len(poses)} poses are given, style interpolation keeps one")
        y_a, y_b = (torch.randn(3, *self.size, generator=_generator(seed)) for seed in seeds)
        shares = np.linspace(0, 1, frames)

        @torch.inference_mode()
        def batch(rows: list[int]) -> np.ndarray:
            share = torch.from_numpy(shares[rows]).to(self.placement.device, self.placement.dtype)
            texture = [
                torch.lerp(f[:1], f[1:], share[:, None, None, None])
                for f in self.model.encode(self.placement.images(ends))
            ]
            y_T = [slerp(y_a, y_b, float(shares[row])) for row in rows]
            return pipe._denoise(texture, np.repeat(poses, len(rows), axis=0), noise=lambda: y_T)

        return Output(pipe._in_batches(batch, frames))

    def _in_batches(self, batch: Callable[[list[int]], np.ndarray], count: int) -> np.ndarray:
        """Run `batch` (rows -> uint8 images) over all rows; the first ones pad the last batch."""
        size, parts = self.settings.batch_size, []
        for start in range(0, count, size):
            rows = list(range(start, min(start + size, count)))
            padding = [start + i % len(rows) for i in range(size - len(rows))]
            with names_memory(f"draw fewer than {size} images at once (--batch-size)"):
                parts.append(batch(rows + padding)[: len(rows)])
        return np.concatenate(parts) if parts else np.empty((0, *self.size, 3), dtype=np.uint8)

    def _denoise(
        self,
        texture: list[Tensor],
        keypoints: np.ndarray | None,
        *,
        noise: Callable[[], list[Tensor]],  # drawn on the CPU: the same on every device
        known: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> np.ndarray:
        device, y_T = self.placement.device, torch.stack(noise())
        if keypoints is None:
            x_p = torch.zeros(len(y_T), POSE_CHANNELS, *self.size)
        else:
            x_p = pose_map(torch.from_numpy(np.array(keypoints, np.float32)).to(device), self.size)
        y = sample_images(
            self.model,
            self.diffusion,
            texture=texture,
            x_p=self.placement.tensor(x_p),
            y_T=y_T.to(device),
            settings=self.settings,
            noise=lambda _: torch.stack(noise()).to(device),
            known=known,
            watch=self.watch,
            absent=self._absent,
        )
        return to_uint8(y)

    def _arrays(self, sources: Source | Sequence[Source]) -> np.ndarray:
        """uint8 (B, H, W, 3) of one image or several."""
        alone = isinstance(sources, str | Path | Image.Image)
        if alone or (isinstance(sources, np.ndarray) and sources.ndim == 3):
            return self._array(cast(Source, sources))[None]
        several = [self._array(source) for source in cast("Sequence[Source]", sources)]
        if not several:
            raise UserError("no image is given")
        return np.stack(several)

    def _array(self, source: Source) -> np.ndarray:
        if isinstance(source, str | Path):
            source = load_image(source)
        elif isinstance(source, Image.Image):
            try:
                source = to_pixels(source)
            except ValueError as error:
                raise UserError(f"an image has {error}") from error
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise UserError(
                f"an image is {source.dtype} {source.shape}; uint8 (H, W, 3) is what is drawn from"
            )
        return source if source.shape[:2] == self.size else resized(source, self.size)

    def describe(self) -> dict[str, Any]:
        """What decides the pixels, for manifests: weights, settings, hardware."""
        return {
            "weights": self.fingerprint,
            "sample": to_dict(self.settings),
            "hardware": str(self.placement),
        }


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation: between unit noises it stays unit noise, a mean would not."""
    angle = torch.acos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    if angle < 1e-3:  # nearly one direction, where the formula divides nothing by nothing
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed) % 2**63)


def _poses(keypoints: np.ndarray) -> np.ndarray:
    """(B, 18, 2) of one pose or several; UserError for another shape, such as with confidences."""
    poses = np.asarray(keypoints, dtype=np.float32)
    if poses.ndim not in (2, 3) or poses.shape[-2:] != (len(JOINTS), 2):
        raise UserError(
            f"poses are {poses.shape}, not (B, {len(JOINTS)}, 2): x and y of the joints"
        )
    return poses.reshape(-1, len(JOINTS), 2)


def _repeated(values: np.ndarray | None, count: int) -> np.ndarray | None:
    return None if values is None else np.broadcast_to(values, (count, *values.shape[1:]))


def _matched(seeds: Sequence[int] | None, **parts: Sized) -> list[int]:
    """The seeds of all images, default 0, 1, …: as many as there are of the most numerous part.

    Raises UserError for a part of neither one element nor as many, and for fewer seeds.
    """
    count = max(map(len, [*parts.values(), [0] if seeds is None else seeds]))
    numbers = list(range(count)) if seeds is None else list(seeds)
    if len(numbers) != count or any(len(part) not in (1, count) for part in parts.values()):
        parts["seeds"] = numbers
        found = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        raise UserError(f"{found} do not match")
    return numbers


def _softened(mask: np.ndarray, width: float) -> np.ndarray:
    """A mask (H, W) as weights in [0, 1]: at `width` px from what is kept, 1."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    if width <= 0 or mask.all():  # which has no edge
        return mask.astype(np.float32)
    far: np.ndarray = distance_transform_edt(mask)  # in px
    return np.clip(far / width, 0, 1).astype(np.float32)
