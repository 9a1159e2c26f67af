"""Wall time of the demonstration, training included, as a user sees it: one process from start to report.

The other side is the promise: under 60 s on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

LIMIT = 60.0


def main() -> None:
    """Print each run's seconds beside the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "nnicompress", "run", "recipe=taylorfo_resnet", f"run_dir={folder}/run"],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # progress lines
            )
            seconds = time.perf_counter() - started
        print(f"nnicompress run recipe=taylorfo_resnet: {seconds:.1f} s (limit {LIMIT:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
