"""Roll out two policies from the same held-out starts of simulated tasks, and compare their success rates.

    python examples/evaluate_and_compare.py     # two small untrained policies, which fail, for a few short episodes
    python examples/evaluate_and_compare.py --policies runs/rocket/policy runs/none/policy --episodes 100

Needs the simulator MetaWorld: pip install 'rocket-hf[sim]'. `rocket-hf eval POLICY --against OTHER` does the same, and
writes a report for the model card.
"""

import argparse
import tempfile
from pathlib import Path

from rocket_hf import RocketForActionPrediction, RocketProcessor
from rocket_hf.evaluation.rollouts import EpisodeResult, rollout
from rocket_hf.evaluation.statistics import PairedComparison, format_rate
from rocket_hf.study.small_policy import write_small_policy
from rocket_hf.tiny_dataset import write_tiny_dataset

TASKS = ["button-press-topdown-v3", "drawer-open-v3"]
INSTRUCTIONS = ["press the button down from above", "open the drawer"]  # of these tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs=2, help="folders or Hub ids of two policies (default: untrained ones)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="MetaWorld tasks (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=2, help="episodes per task and policy (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, help="steps after which an episode fails (default: the benchmark's)")
    arguments = parser.parse_args()
    if arguments.policies is None:
        arguments.policies, arguments.max_steps = build_policies(Path(tempfile.mkdtemp())), 20

    results = {name: evaluate(name, arguments) for name in arguments.policies}
    outcomes = {name: [episode.success for episode in episodes] for name, episodes in results.items()}
    for name, successes in outcomes.items():
        print(f"{name}: {format_rate(sum(successes), len(successes))}")
    print(PairedComparison.from_outcomes(*outcomes.values()).sentence("the first policy", "the second policy"))


def evaluate(name: str, arguments: argparse.Namespace) -> list[EpisodeResult]:
    """Run all episodes of one policy. Episode k of a task starts from the same seed for every policy."""
    policy, processor = RocketForActionPrediction.from_pretrained(name), RocketProcessor.from_pretrained(name)
    settings = {"execute": 5, "max_steps": arguments.max_steps}  # execute 5 actions of a chunk, then observe again
    return rollout(policy, processor, "metaworld", arguments.tasks, arguments.episodes, workers=0, **settings)


def build_policies(folder: Path) -> list[str]:
    """Write two untrained policies with the cameras and dimensions of MetaWorld's robot."""
    cameras = {"corner2": (64, 64), "gripperPOV": (64, 64)}
    dataset = write_tiny_dataset(folder / "dataset", cameras=cameras, state_dim=4, action_dim=4, tasks=INSTRUCTIONS)
    for seed in (0, 1):
        write_small_policy(folder / f"untrained-{seed}", dataset, seed=seed)
    return [str(folder / f"untrained-{seed}") for seed in (0, 1)]


if __name__ == "__main__":
    main()
