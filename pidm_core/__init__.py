"""PIDM, the Person Image Diffusion Model: the same person in another pose.

Names are loaded when first used, so that `import pidm_core` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "BAD_DATA": "files",
    "DONE": "files",
    "ENVIRONMENT": "files",
    "INTERNAL": "files",
    "PIDMConfig": "config",
    "PIDMPipeline": "pipeline",
    "Record": "data",
    "SKIPPED": "files",
    "TERMINATED": "files",
    "USAGE": "files",
    "UserError": "files",
    "decode_image": "files",
    "encode_jpeg": "files",
    "encode_png": "files",
    "load_config": "config",
    "load_image": "files",
    "make_pairs": "data",
    "mirror": "keypoints",
    "parse": "config",
    "parse_json": "files",
    "passes_patn": "keypoints",
    "read_json": "files",
    "read_keypoints": "keypoints",
    "read_market1501": "data",
    "run": "files",
    "save_config": "config",
    "sha256": "files",
    "to_dict": "config",
    "toy_market": "",
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
