"""Training in a child process, so that its peak memory can be measured.

The child exits when its parent ends for any reason, so that two trainings never write to the same folder.
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
    """Run `training/train.py` with these arguments in a child process and print its output; return its exit code."""
    command = [sys.executable, "-m", "rocket_hf.study.ablation_training", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="")
        return child.wait()


def main(words: list[str]) -> int:
    threading.Thread(target=exit_with_parent, daemon=True).start()
    from rocket_hf.training.train import main as train
    from rocket_hf.training.train import parse_arguments

    code = train(words)
    if code == 0:
        write_text(parse_arguments(words).out / MEMORY, str(peak_resident()))
    return code


def exit_with_parent() -> None:
    """Wait until the parent's end closes the pipe to this process's standard input, then exit."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def peak_resident() -> int:
    """Return the peak resident memory in bytes.

    It is read from /proc where possible, because Linux's `getrusage` includes the parent's memory at the fork.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS reports bytes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
