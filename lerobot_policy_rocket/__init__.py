"""Plugin that lets lerobot's tools load, train and evaluate the policies of rocket_hf.

lerobot discovers and imports this package by its name, and the import registers policy and environment:

    lerobot-eval    --policy.path=POLICY --env.type=metaworld --env.task=door-close-v3
    lerobot-train   --policy.type=rocket --policy.pretrained_path=POLICY --dataset.repo_id=...
    lerobot-rollout --policy.path=POLICY ...

POLICY is a folder or Hub repository that `rocket-hf publish` wrote.
"""

from . import configuration_rocket, simulated_env  # noqa: F401
