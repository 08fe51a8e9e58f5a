"""PIDM, the Person Image Diffusion Model: the same person in another pose.

Names are loaded when first used, so that `import pidm_core` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidm_core import toy_market as toy_market
    from pidm_core import train as train
    from pidm_core.config import PIDMConfig as PIDMConfig
    from pidm_core.config import Sampling as Sampling
    from pidm_core.data import Record as Record
    from pidm_core.data import check_frame as check_frame
    from pidm_core.data import find_keypoints as find_keypoints
    from pidm_core.data import find_subset as find_subset
    from pidm_core.data import has_market1501 as has_market1501
    from pidm_core.data import make_pairs as make_pairs
    from pidm_core.data import read_market1501 as read_market1501
    from pidm_core.files import BAD_DATA as BAD_DATA
    from pidm_core.files import DONE as DONE
    from pidm_core.files import ENVIRONMENT as ENVIRONMENT
    from pidm_core.files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
    from pidm_core.files import INTERNAL as INTERNAL
    from pidm_core.files import SKIPPED as SKIPPED
    from pidm_core.files import TERMINATED as TERMINATED
    from pidm_core.files import USAGE as USAGE
    from pidm_core.files import UserError as UserError
    from pidm_core.files import check_outputs as check_outputs
    from pidm_core.files import decode_image as decode_image
    from pidm_core.files import encode_jpeg as encode_jpeg
    from pidm_core.files import encode_png as encode_png
    from pidm_core.files import load_image as load_image
    from pidm_core.files import parse_json as parse_json
    from pidm_core.files import quoted as quoted
    from pidm_core.files import read_image_file as read_image_file
    from pidm_core.files import read_json as read_json
    from pidm_core.files import refuse_path as refuse_path
    from pidm_core.files import resized as resized
    from pidm_core.files import run as run
    from pidm_core.files import sha256 as sha256
    from pidm_core.files import stop_after as stop_after
    from pidm_core.files import write_bytes as write_bytes
    from pidm_core.files import write_json as write_json
    from pidm_core.hardware import place as place
    from pidm_core.image_names import named_pair as named_pair
    from pidm_core.image_names import without_seed as without_seed
    from pidm_core.keypoints import JOINTS as JOINTS
    from pidm_core.keypoints import NOBODY as NOBODY
    from pidm_core.keypoints import mirror as mirror
    from pidm_core.keypoints import orientation as orientation
    from pidm_core.keypoints import passes_patn as passes_patn
    from pidm_core.keypoints import read_keypoints as read_keypoints
    from pidm_core.keypoints import rescale as rescale
    from pidm_core.keypoints import write_keypoints as write_keypoints
    from pidm_core.options import from_dict as from_dict
    from pidm_core.options import load_config as load_config
    from pidm_core.options import parse as parse
    from pidm_core.options import save_config as save_config
    from pidm_core.options import to_dict as to_dict
    from pidm_core.pipeline import PIDMPipeline as PIDMPipeline
    from pidm_core.pose import skeleton as skeleton
    from pidm_core.progress import duration as duration
    from pidm_core.progress import track as track
    from pidm_core.seen import Seen as Seen
    from pidm_core.seen import content_key as content_key
    from pidm_core.seen import is_drawn as is_drawn
    from pidm_core.seen import read_seen as read_seen
    from pidm_core.sheets import enlarged as enlarged
    from pidm_core.sheets import sheet as sheet
    from pidm_core.weight_files import read_weights as read_weights

__version__ = "0.1.0"

_HOME = {
    "BAD_DATA": "files",
    "DONE": "files",
    "ENVIRONMENT": "files",
    "IMAGE_SUFFIXES": "files",
    "INTERNAL": "files",
    "JOINTS": "keypoints",
    "NOBODY": "keypoints",
    "PIDMConfig": "config",
    "PIDMPipeline": "pipeline",
    "Record": "data",
    "SKIPPED": "files",
    "Sampling": "config",
    "Seen": "seen",
    "TERMINATED": "files",
    "USAGE": "files",
    "UserError": "files",
    "check_frame": "data",
    "check_outputs": "files",
    "content_key": "seen",
    "decode_image": "files",
    "encode_jpeg": "files",
    "encode_png": "files",
    "enlarged": "sheets",
    "find_keypoints": "data",
    "find_subset": "data",
    "from_dict": "options",
    "has_market1501": "data",
    "is_drawn": "seen",
    "load_config": "options",
    "load_image": "files",
    "make_pairs": "data",
    "mirror": "keypoints",
    "named_pair": "image_names",
    "orientation": "keypoints",
    "parse": "options",
    "parse_json": "files",
    "passes_patn": "keypoints",
    "place": "hardware",
    "quoted": "files",
    "read_image_file": "files",
    "read_json": "files",
    "read_keypoints": "keypoints",
    "read_market1501": "data",
    "read_seen": "seen",
    "read_weights": "weight_files",
    "refuse_path": "files",
    "rescale": "keypoints",
    "resized": "files",
    "run": "files",
    "save_config": "options",
    "sha256": "files",
    "sheet": "sheets",
    "skeleton": "pose",
    "stop_after": "files",
    "to_dict": "options",
    "toy_market": "",
    "duration": "progress",
    "track": "progress",
    "train": "",
    "without_seed": "image_names",
    "write_bytes": "files",
    "write_json": "files",
    "write_keypoints": "keypoints",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pidm_core' has no attribute '{name}'")
    room = importlib.import_module(f"pidm_core.{_HOME[name] or name}")
    value = getattr(room, name) if _HOME[name] else room
    globals()[name] = value
    return value
