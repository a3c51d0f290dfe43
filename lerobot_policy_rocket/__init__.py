"""rocket_hf's policies in lerobot's own tools. lerobot imports this package by its name; importing it registers them.

lerobot-eval    --policy.path=PUBLISHED --env.type=metaworld --env.task=door-close-v3
lerobot-train   --policy.type=rocket --policy.pretrained_path=PUBLISHED --dataset.repo_id=...
lerobot-rollout --policy.path=PUBLISHED ...

PUBLISHED is a folder or a repository as rocket_hf publishes it.
"""

from . import configuration_rocket, simulated_env  # noqa: F401
