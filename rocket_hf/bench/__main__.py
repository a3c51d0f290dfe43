"""`python -m rocket_hf.bench NAME [--json]`: runs one benchmark and prints its figures."""

import argparse
import importlib
import json
import sys

BENCHMARKS = {
    "agreement": "the agreement of gradients, measured while training, against a step",
    "alignment": "the alignment head against the plain way, and nested against full widths",
    "data": "our loader against lerobot's own, PNG and video, with chunks of actions",
    "layers": "memory of choosing layers from few and from many samples",
    "policies": "taps against no taps, and inference against lerobot's own classes",
    "rocket2": "ROCKET-2's memory against the whole window read again, and the first of its steps against the last",
    "step": "a training step without alignment, with ROCKET from the cache and live, and by layer pairs",
    "teacher": "a teacher at its own resolution, at the camera's, stopped half-way, and from the feature cache",
}


def main() -> int:
    listed = "\n".join(f"  {name:12} {phrase}" for name, phrase in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "python -m rocket_hf.bench",
        description="Ratios measured in one run.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="print one JSON object of the figures")
    parser.add_argument("--policy", choices=["25m", "openvla-7b"], help="of `step` (default: 25m; the other for a GPU)")
    arguments = parser.parse_args()
    if arguments.policy and arguments.name != "step":
        parser.error("--policy belongs to the benchmark step")
    benchmark = importlib.import_module(f"rocket_hf.bench.{arguments.name}")
    figures = benchmark.measure(arguments.policy) if arguments.policy else benchmark.measure()
    print(json.dumps(figures) if arguments.json else benchmark.report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
