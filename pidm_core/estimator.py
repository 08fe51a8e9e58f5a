"""Images -> keypoints by ViTPose or torchvision's keypoint R-CNN, from weights the user has.

Finished rows are kept in OUT.part until all are done, so that a killed run goes on.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidm_core.data import Record
from pidm_core.files import (
    BAD_DATA,
    ENVIRONMENT,
    UserError,
    encode_png,
    load_image,
    read_json,
    sha256,
    write_bytes,
    write_json,
)
from pidm_core.hardware import place
from pidm_core.keypoints import (
    HEADER,
    csv_row,
    from_coco,
    read_csv,
    read_keypoints,
    rescale,
    without_outside,
    write_keypoints,
)
from pidm_core.pose import skeleton
from pidm_core.weight_files import read_weights, refuse_stand_ins

Estimator = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""uint8 (H, W, 3) images of one person each -> float32 (18, 2) px, NaN = not seen."""

RCNN_FILES = ("keypointrcnn_resnet50_fpn_coco-fc266e95.pth", "keypointrcnn.safetensors")
VITPOSE_FILE = "model.safetensors"
_RCNN_SEEN, _VITPOSE_SEEN = 2.0, 0.3  # least score of a joint: a logit, a probability
_PERSON_SCORE = 0.5
_SHEET, _TILE = (3, 8), (192, 128)  # rows and columns, height and width in px


# ---------------------------------------------------------------- networks


def find_weights(path: str | Path) -> Path:
    """The weight file in a folder (or the file itself); UserError says which file to put where."""
    path = Path(path)
    names = (VITPOSE_FILE, *RCNN_FILES)
    found = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
    if not found:
        raise UserError(
            f"{path}: no weights there; put ViTPose's config.json and {VITPOSE_FILE} (such as "
            f"usyd-community/vitpose-base-simple) or torchvision's {RCNN_FILES[0]} into it",
            ENVIRONMENT,
        )
    refuse_stand_ins(found[0])
    return found[0]


def load_estimator(weights: Path) -> Estimator:
    """The network of a weight file: ViTPose by its name and a config.json, else keypoint R-CNN.

    Raises UserError for a file that does not hold all of the network's tensors.
    """
    device = place("fp32").device
    if weights.name == VITPOSE_FILE and (weights.parent / "config.json").is_file():
        return _vitpose(weights.parent, device)
    return _keypoint_rcnn(weights, device)


def _vitpose(folder: Path, device: torch.device) -> Estimator:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"{folder}: ViTPose needs transformers; install it with pip install -e '.[pose]'",
            ENVIRONMENT,
        ) from error
    try:
        model, report = transformers.VitPoseForPoseEstimation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises a dozen kinds on broken files
        raise UserError(f"{folder}: not a ViTPose model ({_line(error)})", BAD_DATA) from error
    if lacking := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: not a ViTPose model; {len(lacking)} tensors lack, as {lacking[0]}", BAD_DATA
        )
    height, width = model.config.backbone_config.image_size
    processor = transformers.VitPoseImageProcessor(size={"height": height, "width": width})
    model.to(device).eval()

    @torch.inference_mode()
    def estimate(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        boxes = [[[0.0, 0.0, image.shape[1], image.shape[0]]] for image in images]
        pixels = processor(list(images), boxes=boxes, return_tensors="pt").pixel_values.to(device)
        experts = {}
        if model.config.backbone_config.num_experts > 1:  # ViTPose+: 0 = COCO's joints
            experts["dataset_index"] = torch.zeros(len(images), dtype=torch.long, device=device)
        found = processor.post_process_pose_estimation(model(pixels, **experts), boxes=boxes)
        return [_ours(one["keypoints"], one["scores"], _VITPOSE_SEEN) for (one,) in found]

    return estimate


def _keypoint_rcnn(weights: Path, device: torch.device) -> Estimator:
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    state = read_weights(weights)
    model = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    own = model.state_dict()
    if lacking := [k for k, v in own.items() if k not in state or state[k].shape != v.shape]:
        raise UserError(
            f"{weights}: not keypoint R-CNN; {len(lacking)} tensors lack or differ, as "
            f"{lacking[0]}",
            BAD_DATA,
        )
    model.load_state_dict({name: state[name] for name in own})
    model.to(device).eval()

    @torch.inference_mode()
    def estimate(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        pixels = [torch.from_numpy(im.copy()).permute(2, 0, 1).to(device) / 255 for im in images]
        return [_most_certain(found) for found in model(pixels)]

    return estimate


def _most_certain(found: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Joints of the person with the highest score, none if nobody is likely."""
    if not len(found["scores"]) or found["scores"][0] < _PERSON_SCORE:  # sorted by score
        return np.full((18, 2), np.nan, dtype=np.float32)
    return _ours(found["keypoints"][0, :, :2], found["keypoints_scores"][0], _RCNN_SEEN)


def _ours(joints: Any, scores: Any, least: float) -> np.ndarray:
    """COCO's joints (17, 2) and their scores (17,) as our 18, the doubtful ones missing."""
    seen = np.asarray(scores.cpu()) >= least
    return from_coco(np.where(seen[:, None], np.asarray(joints.cpu(), dtype=np.float32), np.nan))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"


# ---------------------------------------------------------------- a folder of images


def describe(weights: Path, data: str | Path) -> dict[str, str]:
    """What joints are made with, noted beside them as OUT.json."""
    return {"weights": weights.name, "sha256": sha256(weights), "data": str(Path(data).resolve())}


def unfinished(out: Path, made_with: Mapping[str, str], images: Sequence[Record]) -> list[Record]:
    """The images still to do for `out`, without the sheet of an earlier run that lies among them.

    From here until `finish` only one process may work on `out` (`folders.only_writer_of`).
    Raises UserError if `out` was made with other weights or from another folder, and for files
    of the user that would be overwritten.
    """
    note, sheet = _note(out), out.with_suffix(".png").resolve()
    others = [image for image in images if image.path.resolve() != sheet]
    begun = read_json(note) if note.is_file() else None
    if begun is None and out.is_file():
        raise UserError(f"{out}: is not a file of this tool ({note} lacks); give another --out")
    if begun is None and len(others) < len(images):
        raise UserError(
            f"{sheet}: an image of the set, which the sheet would replace; give another --out"
        )
    if begun is not None and (not isinstance(begun, dict) or begun.keys() != made_with.keys()):
        raise UserError(f"{note}: is not a note of this tool; give another --out")
    done = _finished(out)
    if done and begun != made_with:
        what = "weights" if begun is None or begun["data"] == made_with["data"] else "images"
        raise UserError(f"{out}: was begun with other {what} ({note}); give another --out")
    return [image for image in others if image.name not in done]


def estimate_all(
    images: Sequence[Record],
    estimator: Estimator,
    out: Path,
    *,
    made_with: Mapping[str, str],
    batch_size: int,
    broken: list[str],
) -> Iterator[int]:
    """Estimate batch by batch into OUT.part and yield each one's size; messages go to `broken`."""
    write_json(_note(out), made_with)
    finished = _finished(out)
    rows = [HEADER, *(csv_row(name, joints) for name, joints in finished.items())]
    write_bytes(_part(out), ("\n".join(rows) + "\n").encode())  # without a torn last line
    with _part(out).open("a") as part:
        for first in range(0, len(images), batch_size):
            batch = images[first : first + batch_size]
            read = [(record.name, image) for record in batch if (image := _try(record, broken))]
            joints = estimator([pixels for _, (pixels,) in read]) if read else []
            for (name, (pixels,)), one in zip(read, joints, strict=True):
                part.write(csv_row(name, without_outside(one, pixels.shape[:2])) + "\n")
            part.flush()
            os.fsync(part.fileno())
            yield len(batch)


def finish(out: Path) -> dict[str, np.ndarray]:
    """Write all that is finished as PATN CSV, remove OUT.part, and return it."""
    finished = _finished(out)
    if finished:
        write_keypoints(out, finished)
    _part(out).unlink(missing_ok=True)
    return finished


def _note(out: Path) -> Path:
    return out.with_suffix(".json")


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _finished(out: Path) -> dict[str, np.ndarray]:
    done = read_keypoints(out) if out.is_file() else {}
    if _part(out).is_file():
        lines = _part(out).read_text().split("\n")[:-1]  # the last one is torn, or empty
        done |= read_csv("\n".join(lines), _part(out)) if len(lines) > 1 else {}
    return done


def _try(record: Record, broken: list[str]) -> tuple[np.ndarray] | None:
    try:
        return (load_image(record.path),)
    except (UserError, OSError) as error:
        broken.append(str(error))
        return None


def write_sheet(path: Path, images: Sequence[Record], keypoints: Mapping[str, np.ndarray]) -> None:
    """Write a PNG of up to 24 images, evenly chosen, with their skeletons drawn over them."""
    shown = [image for image in images if image.name in keypoints]
    count = min(len(shown), _SHEET[0] * _SHEET[1])
    chosen = [shown[k] for k in np.linspace(0, len(shown) - 1, count).astype(int)]
    tiles = [_overlay(load_image(one.path), keypoints[one.name]) for one in chosen]
    blank = np.full((*_TILE, 3), 255, dtype=np.uint8)
    tiles += [blank] * (-count % _SHEET[1])
    rows = [np.concatenate(tiles[i : i + _SHEET[1]], 1) for i in range(0, len(tiles), _SHEET[1])]
    write_bytes(path, encode_png(np.concatenate(rows)))


def _overlay(image: np.ndarray, joints: np.ndarray) -> np.ndarray:
    from PIL import Image

    small = np.asarray(Image.fromarray(image).resize(_TILE[::-1]), dtype=np.float32)
    drawn = skeleton(rescale(joints, image.shape[:2], _TILE), _TILE)
    lines = drawn.max(-1, keepdims=True) > 0
    return np.where(lines, 0.3 * small + 0.7 * drawn, small).round().astype(np.uint8)
