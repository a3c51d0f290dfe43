"""Clients of the loopback Hub: new processes, each with its own cache folder."""

import os
import subprocess
import sys
from pathlib import Path

# Removes the waiting time between huggingface_hub's retries.
RETRY_AT_ONCE = (
    "import huggingface_hub.utils._http as _http, types\n_http.time = types.SimpleNamespace(sleep=lambda _: 0)\n"
)
WITHOUT_PACKAGE = "import sys\nsys.modules['rocket_hf'] = sys.modules['lerobot'] = None\n"  # makes both imports fail


def client_environment(url: str, home: Path, token: str | None, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return inherited | settings | ({"HF_TOKEN": token} if token else {}) | variables


def start(url: str, code: str, *arguments: object, home: Path, token: str | None = "token-of-ada", **variables: str):
    """Start a client process that runs `code`; the caller waits for it."""
    return subprocess.Popen(
        [sys.executable, "-c", RETRY_AT_ONCE + code, *map(str, arguments)],
        env=client_environment(url, home, token, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(url: str, code: str, *arguments: object, home: Path, token: str | None = "token-of-ada", **variables: str):
    """Run `code` in a client process; return its exit code, standard output and standard error."""
    process = start(url, code, *arguments, home=home, token=token, **variables)
    output, errors = process.communicate(timeout=180)
    return process.returncode, output.strip(), errors
