"""Results of the depth probes of an ablation, over seeds, and differences between variants.

Shapes: E held-out episodes of the probe, L layers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rocket_hf.analysis.bootstrap import bootstrap_mean
from rocket_hf.analysis.depth_report import RUN, UNTRAINED

from .ablation import Ablation, depth_phase_name
from .ablation_results import BASELINES, summarize_seeds

DepthsByModel = dict[str, list["ProbedVariant"]]  # model name -> its probe of each seed


@dataclass
class ProbedVariant:
    """Depth errors of a variant, the untrained policy, the teacher or a constant, for one seed."""

    name: str
    kind: str
    seed: int
    layers: list[int]
    errors_by_episode: np.ndarray  # (E, L), relative errors
    selected_index: int  # index in `layers` of the layer selected on validation episodes

    @property
    def errors(self) -> np.ndarray:
        """Return the mean error of each layer, (L,)."""
        return self.errors_by_episode.mean(axis=0)

    @property
    def error(self) -> float:
        return float(self.errors[self.selected_index])


def read_depths(ablation: Ablation) -> DepthsByModel:
    """Read the results of all seeds: the variants in their order, then the models that they are compared with."""
    depths: DepthsByModel = {}
    for seed in ablation.seeds:
        result = ablation.phases.results.get(depth_phase_name(ablation.recipes, seed))
        for probed in parse_depth_result(result, seed) if result else []:
            depths.setdefault(probed.name, []).append(probed)
    return depths


def parse_depth_result(result: dict[str, Any], seed: int) -> list[ProbedVariant]:
    """Parse the content of a depth.json of `rocket-hf analyze depth`."""
    rows_by_name: dict[str, list[dict[str, Any]]] = {}
    for row in result["layers"]:
        rows_by_name.setdefault(row["name"], []).append(row)
    return [
        ProbedVariant(
            name.removesuffix(f"-seed-{seed}") if rows[0]["kind"] == RUN else name,
            rows[0]["kind"],
            seed,
            [row["layer"] for row in rows],
            np.array(result["errors_by_episode"][name]),
            [row["selected"] for row in rows].index(True),
        )
        for name, rows in rows_by_name.items()
    ]


def summarize_depths(depths: DepthsByModel) -> dict[str, dict[str, Any]]:
    """Return the errors of each model at the selected layer and by layer.

    Variants are also compared with the untrained policy and with the baselines.
    """
    return {
        name: {
            "kind": models[0].kind,
            "error": summarize_seeds([model.error for model in models]),
            "selected_layers": [model.layers[model.selected_index] for model in models],
            "by_layer": dict(zip(models[0].layers, mean_errors(models).tolist(), strict=True)),
            "against": compare_depth_with_baselines(depths, name) if models[0].kind == RUN else {},
        }
        for name, models in depths.items()
    }


def mean_errors(models: list[ProbedVariant]) -> np.ndarray:
    """Return the error of each layer averaged over seeds, (L,)."""
    return np.mean([model.errors for model in models], axis=0)


def compare_depth_with_baselines(depths: DepthsByModel, name: str) -> dict[str, dict[str, float]]:
    baselines = [*(other for other, models in depths.items() if models[0].kind == UNTRAINED), *BASELINES]
    return {
        other: error_difference(depths[name], depths[other]) for other in baselines if other in depths and other != name
    }


def error_difference(first: list[ProbedVariant], second: list[ProbedVariant]) -> dict[str, float]:
    """Return the mean difference of errors on the same episodes, averaged over seeds first, with a bootstrap interval
    over episodes."""
    by_seed = {model.seed: model for model in second}
    differences = [
        model.errors_by_episode[:, model.selected_index] - other.errors_by_episode[:, other.selected_index]
        for model in first
        if (other := by_seed.get(model.seed)) is not None
    ]
    mean, low, high = bootstrap_mean(np.mean(differences, axis=0))
    return {"mean": float(mean), "low": float(low), "high": float(high)}
