"""How fast sampling and training are on this machine, as ratios to plain references."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pidm_core import DONE, parse, run, write_json


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """The small network only, in under 50 seconds."""
    bf16: bool = False
    """Measure bf16 as well where the hardware does not multiply it."""
    json: str = ""
    """File for the figures."""


def main(argv: list[str] | None = None) -> int:
    """Measure on a quiet machine and print the tables."""
    example = "python tools/benchmark.py --quick"
    options = parse(Options, argv, prog="benchmark", description=__doc__, example=example)

    import torch

    from pidm_core import benchmark
    from pidm_core.hardware import fast_bf16, place

    placement = place()
    bf16 = options.bf16 or fast_bf16(placement.device)
    precisions = [torch.float32] + [torch.bfloat16] * bf16
    print(benchmark.hardware(placement))
    rates = {str(d).removeprefix("torch."): benchmark.convolution_rate(d) for d in precisions}
    print("3x3 convolution:", ", ".join(f"{k} {v:.3f} TFLOP/s" for k, v in rates.items()))
    tables = {}
    networks = {"small (the bundled model's)": benchmark.SMALL}
    if not options.quick:
        networks["paper"] = benchmark.PAPER
    for name, config in networks.items():
        large = config is benchmark.PAPER
        blocks = ", ".join(map(str, config.texture_factors))
        print(f"\n{name}: {config.size[0]}x{config.size[1]}, texture blocks at factors {blocks}")
        rows: list[benchmark.Row] = []
        for guidance in ("style", "dcf", "chain"):
            batches = (1, 4, 8) if large else (1, 16)
            rows += benchmark.sampling(config, guidance=guidance, batches=batches, bf16=bf16)
        print(benchmark.table(rows, "step, per image"))
        steps = list(benchmark.training(config, batch=4 if large else 16))
        print(benchmark.table(steps, "training image"))
        kept = [benchmark.kept_bytes(config, recompute=again) for again in (False, True)]
        print(
            f"activations kept for an image in training: {kept[0] / 1e9:.2f} GB, "
            f"with train.recompute {kept[1] / 1e9:.2f} GB"
        )
        tables[name] = {"rows": [asdict(row) for row in [*rows, *steps]], "kept bytes": kept}
    if options.json:
        machine = benchmark.hardware(placement)
        write_json(options.json, {"hardware": machine, "convolution": rates, "tables": tables})
    return DONE


if __name__ == "__main__":
    run(main)
