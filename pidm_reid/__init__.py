"""A larger person re-identification training set from the one you have, and what it is worth.

Names are loaded when first used, so that `import pidm_reid` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidm_reid import retrieval as retrieval
    from pidm_reid.config import PlanPolicy as PlanPolicy
    from pidm_reid.config import ReidTable as ReidTable
    from pidm_reid.config import StudentConfig as StudentConfig
    from pidm_reid.dataset import PIDMAugmentedDataset as PIDMAugmentedDataset
    from pidm_reid.dataset import register as register
    from pidm_reid.experiment import run_table as run_table
    from pidm_reid.finetune import train_and_test as train_and_test
    from pidm_reid.folder_report import write_folder_report as write_folder_report
    from pidm_reid.plan import development_split as development_split
    from pidm_reid.plan import sample_real as sample_real
    from pidm_reid.pool import fresh_each_epoch as fresh_each_epoch
    from pidm_reid.report import write_table_report as write_table_report
    from pidm_reid.synthesize import Generator as Generator
    from pidm_reid.synthesize import Request as Request
    from pidm_reid.synthesize import prepare as prepare
    from pidm_reid.table import write_table as write_table

_HOME = {
    "Generator": "synthesize",
    "PIDMAugmentedDataset": "dataset",
    "PlanPolicy": "config",
    "ReidTable": "config",
    "Request": "synthesize",
    "StudentConfig": "config",
    "development_split": "plan",
    "fresh_each_epoch": "pool",
    "prepare": "synthesize",
    "register": "dataset",
    "retrieval": "",
    "run_table": "experiment",
    "sample_real": "plan",
    "train_and_test": "finetune",
    "write_folder_report": "folder_report",
    "write_table": "table",
    "write_table_report": "report",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pidm_reid' has no attribute '{name}'")
    room = importlib.import_module(f"pidm_reid.{_HOME[name] or name}")
    value = getattr(room, name) if _HOME[name] else room
    globals()[name] = value
    return value
