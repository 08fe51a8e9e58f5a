"""How fast sampling and training are on this machine, as ratios to plain references."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

from pidm_core import DONE, check_outputs, parse, run, write_json


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """The small network only."""
    bf16: bool = False
    """Measure bf16 as well where the hardware does not multiply it."""
    json: str = ""
    """File for the figures."""
    dry_run: bool = False
    """Say what would be measured, and stop."""

    def __post_init__(self) -> None:
        check_outputs(self.json)


def main(argv: list[str] | None = None) -> int:
    """Measure on a quiet machine and print the tables."""
    example = "python tools/benchmark.py --quick"
    options = parse(Options, argv, prog="benchmark", description=__doc__, example=example)

    from pidm_core import benchmark
    from pidm_core.hardware import fast_bf16, place

    placement = place()
    bf16 = options.bf16 or fast_bf16(placement.device)
    machine, networks = benchmark.hardware(placement), benchmark.networks(quick=options.quick)
    print(machine)
    if options.dry_run:
        for network in networks:
            batches = ", ".join(map(str, network.batches))
            print(f"{network}; guidance {', '.join(benchmark.GUIDANCES)} in batches of {batches}")
        return DONE
    rates = benchmark.convolution_rates(bf16=bf16)
    convolutions = {benchmark.name_of(dtype): rate for dtype, rate in rates.items()}
    text = ", ".join(f"{name} {rate:.3f} TFLOP/s" for name, rate in convolutions.items())
    print(f"3x3 convolution, of which `share` is one: {text}", flush=True)
    reports = []
    for network in networks:
        report = benchmark.measure(network, rates, partial(print, flush=True))
        reports.append(asdict(report))
    shares = on_the_fly(quick=options.quick)
    if options.json:
        figures = {"convolution": convolutions, "reports": reports, "on_the_fly": shares}
        write_json(options.json, {"hardware": machine, **figures})
        print(f"-> {options.json}")
    else:
        print("\nnothing was written; --json FILE keeps the figures")
    return DONE


def on_the_fly(*, quick: bool) -> dict[str, float]:
    """Print and return what generating an image costs, in ResNet50 training steps on one image."""
    from pidm_core import benchmark
    from pidm_reid.config import NetworkConfig
    from pidm_reid.finetune import measure_speed

    training = 1 / measure_speed(NetworkConfig(height=256, width=128, batch_size=8))
    print(f"\nResNet50 trains on an image of 256x128 in {1000 * training:.1f} ms; to generate one:")
    shares = {}
    for name, seconds in benchmark.generators(quick=quick):
        shares[name] = seconds / training
        print(f"{name:44} {1000 * seconds:8.1f} ms, {shares[name]:6.2f} of that", flush=True)
    return shares


if __name__ == "__main__":
    run(main, again="nothing was kept")
