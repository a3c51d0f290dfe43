"""Tests that the examples in the docstrings of public classes and methods run."""

import re
import textwrap

import pytest

from rocket_hf import (
    AlignmentConfig,
    Rocket2Config,
    Rocket2ForActionPrediction,
    RocketConfig,
    RocketForActionPrediction,
    RocketProcessor,
)

DOCUMENTED = [
    AlignmentConfig,
    RocketConfig,
    Rocket2Config,
    RocketForActionPrediction,
    RocketForActionPrediction.for_robot,
    Rocket2ForActionPrediction,
    RocketProcessor,
]
# Last line that each example prints.
PRINTED = {
    "AlignmentConfig": "[409, 1228, 2048]",
    "RocketConfig": "torch.Size([2, 2, 3, 224, 224])",
    "Rocket2Config": "torch.Size([2, 4, 2])",
    "RocketForActionPrediction": "torch.Size([2, 50, 7])",
    "RocketForActionPrediction.for_robot": "3 []",
    "Rocket2ForActionPrediction": "torch.Size([2, 2])",
    "RocketProcessor": "{'images': (1, 1, 3, 224, 224), 'camera_mask': (1, 1), 'state': (1, 6), "
    "'input_ids': (1, 48), 'attention_mask': (1, 48)}",
}


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda documented: documented.__qualname__)
def test_docstring_example_runs(documented, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", documented.__doc__, flags=re.DOTALL)
    exec(compile(textwrap.dedent(example), documented.__qualname__, "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == PRINTED[documented.__qualname__]
