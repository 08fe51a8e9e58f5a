"""How fast sampling and training are on this machine, as ratios to plain references."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pidm_core import DONE, parse, run, write_json


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """The small network only."""
    bf16: bool = False
    """Measure bf16 as well where the hardware does not multiply it."""
    json: str = ""
    """File for the figures."""


def main(argv: list[str] | None = None) -> int:
    """Measure on a quiet machine and print the tables."""
    example = "python tools/benchmark.py --quick"
    options = parse(Options, argv, prog="benchmark", description=__doc__, example=example)

    from pidm_core import benchmark
    from pidm_core.hardware import fast_bf16, place

    placement = place()
    bf16 = options.bf16 or fast_bf16(placement.device)
    machine, rates = benchmark.hardware(placement), benchmark.convolution_rates(bf16=bf16)
    print(machine)
    print("3x3 convolution:", ", ".join(f"{k} {v:.3f} TFLOP/s" for k, v in rates.items()))
    reports = []
    for report in benchmark.measure(quick=options.quick, bf16=bf16):
        print(f"\n{report.text()}", flush=True)
        reports.append(asdict(report))
    if options.json:
        write_json(options.json, {"hardware": machine, "convolution": rates, "reports": reports})
        print(f"-> {options.json}")
    return DONE


if __name__ == "__main__":
    run(main)
