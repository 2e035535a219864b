"""``python -m benchmarks [ID ...]``: the quick benchmarks in order, one JSON line per measure."""

from __future__ import annotations

import subprocess
import sys

#: Id -> module. Each runs in a process of its own, so that none warms or crowds another.
QUICK = {
    "P1": "p1_redis_append",
    "P2": "p2_append",
    "P3": "p3_rebuild",
    "P4": "p4_read",
    "P4r": "p4_redis_read",
    "P5": "p5_step",
    "P6": "p6_dormant",
    "P7": "p7_graft",
    "P8": "p8_replay",
    "P11": "p11_help",
    "memory": "memory_redis",
    "SEAL": "seal_rate",
}
#: Those that take minutes; they run only when named.
LONG = {
    "COMPILE": "compile_rate",
    "LIBRARY": "library_cards",
    "G4": "g4_bottleneck",
    "G5": "g5_spikes",
}


def main() -> int:
    """Run the named benchmarks, or all quick ones, and return the first exit code that is not 0."""
    known = QUICK | LONG
    wanted = sys.argv[1:] or list(QUICK)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.stderr.write(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}\n")
        return 2
    worst = 0
    for name in wanted:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{known[name]}"], check=False)
        worst = worst or done.returncode
    return worst


if __name__ == "__main__":
    sys.exit(main())
