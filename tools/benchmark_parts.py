"""How fast single parts are on this CPU beside what they replace, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pidm_core import DONE, check_outputs, parse, run, write_json

if TYPE_CHECKING:
    from pidm_core.parts import Part


@dataclass(frozen=True)
class Options:
    """What is measured beside the parts, and where the figures go."""

    authors: str = ""
    """A clone of ankanbhunia/PIDM, whose code is then imported and timed."""
    json: str = ""
    """File for the figures."""
    dry_run: bool = False
    """Say what would be measured, and stop."""

    def __post_init__(self) -> None:
        check_outputs(self.json)


def main(argv: list[str] | None = None) -> int:
    """Measure on a quiet machine and print a line for each part."""
    example = "python tools/benchmark_parts.py --json parts.json"
    options = parse(Options, argv, prog="benchmark_parts", description=__doc__, example=example)

    from pidm_core import benchmark, parts
    from pidm_core.hardware import place

    machine = benchmark.hardware(place(device=parts.CPU))
    print(machine)
    jobs: dict[str, Callable[[], Iterator[Part]]] = {}
    if options.authors:  # first, since its code may not run here
        parts.check_clone(options.authors)
        jobs["the authors' code"] = partial(parts.authors, options.authors)
    jobs |= {
        "GroupNorm": parts.norms,
        "SiLU": parts.silus,
        "3x3 convolution": parts.convolutions,
        "ResNet50": resnets,
        "torch.compile": parts.compiled,
        "ranking": rankings,
        "files": parts.files,
    }
    if options.dry_run:
        print(", ".join(jobs))
        return DONE
    print(parts.HEADING, flush=True)
    figures: list[dict[str, Any]] = []
    for name, job in jobs.items():
        before = len(figures)
        for part in job():
            for figure in parts.measure(part):
                figures.append(asdict(figure))
                print(parts.line(figure), flush=True)
        if len(figures) == before:
            print(f"{name}: cannot be measured here")
    if options.json:
        write_json(options.json, {"hardware": machine, "parts": figures})
        print(f"-> {options.json}")
    else:
        print("nothing was written; --json FILE keeps the figures")
    return DONE


def resnets(
    sizes: Sequence[tuple[int, int, int]] = ((64, 64, 32), (32, 128, 64), (8, 256, 128)),
) -> Iterator[Part]:
    """ResNet50 forward and backward, its small maps as products of matrices."""
    import torch
    from torch import Tensor, nn

    from pidm_core.benchmark import name_of
    from pidm_core.parts import Part, precisions, random
    from pidm_reid import compat
    from pidm_reid.small_maps import by_products

    build, dtype = compat.torchreid().models.build_model, precisions()[-1]

    def gradient(model: nn.Module, x: Tensor, pids: Tensor) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = model(x)
        nn.functional.cross_entropy(outputs.float(), pids).backward()  # type: ignore[no-untyped-call]
        found = next(model.parameters()).grad
        assert found is not None
        return found

    for batch, height, width in sizes:
        both = [build("resnet50", 100, loss="softmax", pretrained=False) for _ in range(2)]
        both[1].load_state_dict(both[0].state_dict())
        by_products(both[1])
        x, pids = random((batch, 3, height, width), torch.float32), torch.arange(batch) % 100
        for model in both:
            model.to(memory_format=torch.channels_last).train()
        acts = [partial(gradient, model, x, pids) for model in both]
        what = f"ResNet50 and its gradient, {height}x{width}, batch {batch}, per image"
        what += f", {name_of(dtype)}"
        yield Part(what, "torch", acts, batch, learns=True)


def rankings(queries: int = 3368, images: int = 19732, few: int = 24) -> Iterator[Part]:
    """Market-1501's ranking beside its matrix product, and alone; random features."""
    import numpy as np

    from pidm_core.parts import Part
    from pidm_reid import compat, retrieval

    random = np.random.default_rng(0)
    query, gallery = (random.standard_normal((n, 2048), np.float32) for n in (queries, images))
    people = random.integers(1, 751, queries), random.integers(0, 751, images)
    cameras = random.integers(0, 6, queries), random.integers(0, 6, images)
    names = "query_pids", "gallery_pids", "query_camids", "gallery_camids"
    columns = dict(zip(names, (*people, *cameras), strict=True))
    acts = [partial(np.matmul, query, gallery.T), partial(retrieval.evaluate, query, gallery)]
    acts[1] = partial(acts[1], **columns)
    yield Part(f"evaluation, {queries:,} queries in {images:,}", "its matrix product", acts)
    given = query[:few] @ gallery.T, people[0][:few], people[1], cameras[0][:few], cameras[1], 50
    rankers = compat.torchreid().metrics.rank.eval_market1501, retrieval.evaluate_rank
    yield Part(
        "ranking, a query", "torchreid's Python", [partial(rank, *given) for rank in rankers], few
    )


if __name__ == "__main__":
    run(main, again="nothing was kept")
