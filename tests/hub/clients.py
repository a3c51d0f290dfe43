"""Clients of the loopback Hub: fresh processes, each with a cache of its own unless it shares one."""

import os
import subprocess
import sys
from pathlib import Path

# No waiting between the retries of huggingface_hub: the tests are about what it does then, not about its patience.
IMPATIENT = (
    "import huggingface_hub.utils._http as _http, types\n_http.time = types.SimpleNamespace(sleep=lambda _: 0)\n"
)
HIDDEN = "import sys\nsys.modules['rocket_hf'] = sys.modules['lerobot'] = None\n"  # importing either raises


def client_environment(url: str, home: Path, token: str | None, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return kept | own | ({"HF_TOKEN": token} if token else {}) | variables


def start(url: str, code: str, *arguments: object, home: Path, token: str | None = "token-of-ada", **variables: str):
    """A client that runs this code; it is waited for by whoever started it."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT + code, *map(str, arguments)],
        env=client_environment(url, home, token, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(url: str, code: str, *arguments: object, home: Path, token: str | None = "token-of-ada", **variables: str):
    """What a client printed, as (exit code, output, errors)."""
    process = start(url, code, *arguments, home=home, token=token, **variables)
    output, errors = process.communicate(timeout=180)
    return process.returncode, output.strip(), errors
