"""Do the images that were added show their person? The network of the kept real images says whom.

By the rule of re-ID: the nearest kept real image, those of the person by the same camera left out;
so neither the source of a generated image nor a twin of a withheld one can be found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pidm_core import Record
from pidm_reid import finetune, plan, retrieval
from pidm_reid.config import NetworkConfig
from pidm_reid.weights import State

ASKED = 3000  # images at most; a share of 0.5 is then known to 0.02


def recognised(
    real: Sequence[Record], added: Sequence[Record], *, network: State, config: NetworkConfig
) -> tuple[float, float] | None:
    """Rank-1 among the real images of the real ones themselves and of the added: 0 ... 1 each.

    network: Standard's, which was trained on the real images and on nothing else.
    None where no person, or none of those added, was seen by another camera too.
    """
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in real:
        cameras[record.pid].add(record.camid)
    found = [record for record in added if cameras[record.pid] - {record.camid}]
    if not (found and any(cameras[record.pid] - {record.camid} for record in real)):
        return None
    asked = plan.shuffled(found, seed=0, key=lambda record: record.name)[:ASKED]
    images = [*real, *asked]
    features = finetune.embed([r.path for r in real], images, network=network, config=config)
    pids, camids = (np.array([getattr(r, key) for r in images]) for key in ("pid", "camid"))
    known, shares = slice(len(real)), []
    for which in (known, slice(len(real), None)):
        ranking = retrieval.evaluate(
            features[which],
            features[known],
            query_pids=pids[which],
            gallery_pids=pids[known],
            query_camids=camids[which],
            gallery_camids=camids[known],
        )
        shares.append(ranking.rank(1))
    return shares[0], shares[1]
