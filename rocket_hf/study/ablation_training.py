"""A training in a process of its own, whose peak memory is that training's alone.

The process ends when the one that started it does, however that ends, so that no two trainings write into one folder.
"""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

from rocket_hf.files import write_text

MEMORY = "peak_memory_bytes"  # file in a run's folder


def train_in_child(words: list[str]) -> int:
    """`training/train.py` with these arguments: its exit code. What it prints is printed here."""
    command = [sys.executable, "-m", "rocket_hf.study.ablation_training", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="")
        return child.wait()


def main(words: list[str]) -> int:
    threading.Thread(target=end_with_parent, daemon=True).start()
    from rocket_hf.training import train

    code = train.main(words)
    if code == 0:
        write_text(train.arguments(words).out / MEMORY, str(peak_resident()))
    return code


def end_with_parent() -> None:
    """Its end closes the pipe that this process reads from; nothing is ever written there."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def peak_resident() -> int:
    """Bytes of resident memory. Linux's `getrusage` counts what the parent held when it started this process, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
