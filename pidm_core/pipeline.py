"""PIDMPipeline: images + poses + seeds -> images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pidm_core.checkpoint import find_model, load_model
from pidm_core.config import DiffusionConfig, SampleConfig, to_dict
from pidm_core.diffusion import Diffusion, sample_images
from pidm_core.files import UserError, load_image
from pidm_core.hardware import Placement, place, to_uint8
from pidm_core.model import PIDM
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
        self.diffusion = Diffusion(diffusion)
        self.settings = settings or SampleConfig()
        self.fingerprint = fingerprint
        self.size: tuple[int, int] = model.config.size

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, placement: Placement | None = None
    ) -> PIDMPipeline:
        """Load a run folder, a model folder, or a bundled model by its name ("toy_market")."""
        model, diffusion, settings, digest = load_model(find_model(name))
        return cls(model, diffusion, settings=settings, fingerprint=digest, placement=placement)

    def with_settings(self, **changes: Any) -> PIDMPipeline:
        """The same pipeline with other sampling settings (fields of SampleConfig)."""
        known = [field.name for field in dataclasses.fields(SampleConfig)]
        if unknown := sorted(set(changes) - set(known)):
            raise UserError(f"unknown setting '{unknown[0]}'; known are {', '.join(known)}")
        other = object.__new__(PIDMPipeline)
        other.__dict__ = {
            **self.__dict__,
            "settings": dataclasses.replace(self.settings, **changes),
        }
        return other

    def __call__(
        self,
        sources: Source | Sequence[Source],
        keypoints: np.ndarray,
        *,
        seeds: Sequence[int] | None = None,
        **settings: Any,
    ) -> Output:
        """Draw each source's person in its target pose.

        sources: B paths, PIL images or uint8 (H, W, 3) arrays, resized to `size` if need be;
        keypoints: (B, 18, 2) px of the output frame, NaN = missing;
        seeds: B numbers (default 0, 1, …); settings: steps, w_p, w_s, guidance, sampler, …
        One source or one pose is used for all. Raises UserError for counts that do not match.
        """
        pipe = self.with_settings(**settings) if settings else self
        images = [sources] if isinstance(sources, str | Path | Image.Image) else list(sources)
        if isinstance(sources, np.ndarray) and sources.ndim == 3:
            images = [sources]
        poses = np.asarray(keypoints, dtype=np.float32).reshape(-1, 18, 2)
        count = max(len(images), len(poses))
        seeds = list(range(count)) if seeds is None else list(seeds)
        if len(images) not in (1, count) or len(poses) not in (1, count) or len(seeds) != count:
            raise UserError(
                f"{len(images)} sources, {len(poses)} poses and {len(seeds)} seeds do not match"
            )
        arrays = np.stack([self._array(image) for image in images])
        arrays = np.broadcast_to(arrays, (count, *arrays.shape[1:]))
        return Output(pipe.render(arrays, np.broadcast_to(poses, (count, 18, 2)), seeds))

    def render(
        self, sources: np.ndarray, keypoints: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        """uint8 (B, H, W, 3) sources, (B, 18, 2) px, B seeds -> uint8 (B, H, W, 3).

        The joint with whatever plans the images.
        Runs in batches of settings.batch_size, the last one padded, and draws the noise of each
        image from its own seed: an image does not depend on its neighbours.
        """
        size = self.settings.batch_size
        parts = [
            self._batch(sources[i : i + size], keypoints[i : i + size], seeds[i : i + size])
            for i in range(0, len(seeds), size)
        ]
        return np.concatenate(parts)

    def _batch(
        self, sources: np.ndarray, keypoints: np.ndarray, seeds: Sequence[int]
    ) -> np.ndarray:
        count = len(seeds)
        rows = [row % count for row in range(self.settings.batch_size)]  # the first ones pad
        poses = torch.from_numpy(np.array(keypoints[rows], dtype=np.float32))
        generators = [torch.Generator().manual_seed(seeds[row] % 2**63) for row in rows]

        def noise(_: int = 0) -> Tensor:  # drawn on the CPU: the same on every device
            drawn = [torch.randn(3, *self.size, generator=g) for g in generators]
            return torch.stack(drawn).to(self.placement.device)

        y = sample_images(
            self.model,
            self.diffusion,
            x_s=self.placement.images(sources[rows]),
            x_p=self.placement.tensor(pose_map(poses.to(self.placement.device), self.size)),
            y_T=noise(),
            settings=self.settings,
            noise=noise,
        )
        return to_uint8(y)[:count]

    def _array(self, source: Source) -> np.ndarray:
        if isinstance(source, str | Path):
            source = load_image(source)
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image.convert("RGB"))

    def describe(self) -> dict[str, Any]:
        """What decides the pixels, for manifests: weights, settings, hardware."""
        return {
            "weights": self.fingerprint,
            "sample": to_dict(self.settings),
            "hardware": str(self.placement),
        }
