"""Run one benchmark and print its results: `python -m rocket_hf.bench NAME [--json]`."""

import argparse
import importlib
import json
import sys

BENCHMARKS = {
    "agreement": "time to measure gradient agreement, relative to a training step",
    "alignment": "alignment head relative to a naive implementation, and nested relative to full widths",
    "data": "data loader relative to lerobot's, for PNG images and video, with action chunks",
    "layers": "memory of layer selection with few and with many samples",
    "policies": "training with taps relative to without, and inference relative to lerobot's policies",
    "rocket2": "ROCKET-2 step with cached memory relative to recomputing the window; early relative to late steps",
    "step": "training step with ROCKET (cached and live features) relative to no alignment, by number of layer pairs",
    "teacher": "teacher at its own and the camera's resolution, at half depth, and read from the feature cache",
}


def main() -> int:
    listed = "\n".join(f"  {name:12} {description}" for name, description in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "python -m rocket_hf.bench",
        description="Run a benchmark. All ratios are between measurements of the same run.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help="name of the benchmark, see below")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument(
        "--policy",
        choices=["25m", "openvla-7b"],
        help="policy of the benchmark step (default: 25m; openvla-7b needs a GPU)",
    )
    arguments = parser.parse_args()
    if arguments.policy and arguments.name != "step":
        parser.error("--policy is an option of the benchmark step only")
    benchmark = importlib.import_module(f"rocket_hf.bench.{arguments.name}")
    figures = benchmark.measure(arguments.policy) if arguments.policy else benchmark.measure()
    print(json.dumps(figures) if arguments.json else benchmark.report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
