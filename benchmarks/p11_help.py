"""P11: how long ``esper --help`` takes, beside a Python that only starts."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.measure import interleave, report


def seconds(*arguments: str) -> float:
    """Return the seconds a Python process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print; the bar is 0.4 s in absolute terms, so it counts only on a calm machine."""
    ours, theirs = interleave([lambda: seconds("-m", "esper", "--help"), lambda: seconds("-c", "pass")], 9)
    median = sorted(ours)[len(ours) // 2]
    report("P11", "esper --help", ours, theirs, unit="s", peer="python -c pass", bar_s=0.4, met_s=median <= 0.4)


if __name__ == "__main__":
    main()
