"""Kill redis-server with -9 at random under concurrent writers, again and again, and print what survived.

Run by ``make soak``. Ends with 1 if an acknowledged fact was lost, doubled or out of order, or a log does not verify.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from faults.crew import Round, kill_rounds
from servers import RedisServer

_COLUMNS = "{:>6}  {:>15}  {:>4}  {:>12}  {:>5}  {:>7}  {:>12}  {:>5}  {:>7}  {}"
_NAMES = (
    "round",
    "killed after ms",
    "torn",
    "acknowledged",
    "lost",
    "doubled",
    "out of order",
    "half",
    "head",
    "verified",
)


def show(rounds: Iterable[Round]) -> list[Round]:
    """Print a line a round as it ends, and return them all."""
    print(_COLUMNS.format(*_NAMES), flush=True)
    done = []
    for one in rounds:
        print(_line(str(one.number or "end"), f"{one.killed_after_ms:.0f}" if one.number else "", one), flush=True)
        done.append(one)
    return done


def _line(name: str, killed: str, one: Round) -> str:
    outcome = one.outcome
    numbers = (outcome.acknowledged, outcome.lost, outcome.doubled, outcome.out_of_order, outcome.half, outcome.head)
    torn = "yes" if one.torn else ""
    return _COLUMNS.format(name, killed, torn, *numbers, "yes" if one.verified else "NO")


def summary(rounds: list[Round]) -> str:
    """Return the last line: kills, facts acknowledged, and the most that was ever wrong."""
    kills = sum(one.number > 0 for one in rounds)
    outcomes = [one.outcome for one in rounds]
    wrong = {
        "lost": max(one.lost for one in outcomes),
        "doubled": max(one.doubled for one in outcomes),
        "out of order": max(one.out_of_order for one in outcomes),
        "half": max(one.half for one in outcomes),
        "not verified": sum(not one.verified for one in rounds),
    }
    counts = ", ".join(f"{count} {name}" for name, count in wrong.items())
    torn = sum(one.torn for one in rounds)
    return f"total: {kills} kills, {torn} torn files, {outcomes[-1].acknowledged} facts acknowledged: {counts}"


def main() -> int:
    """Run the rounds; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often the server is killed")
    parser.add_argument("--writers", type=int, default=3, help="writer processes")
    parser.add_argument("--seed", type=int, default=None, help="gives the moments; drawn and printed when left out")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"{chosen.rounds} rounds, {chosen.writers} writers, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="esper-soak-") as name, RedisServer(Path(name) / "redis") as server:
        rounds = show(kill_rounds(server, Path(name), chosen.rounds, seed=seed, writers=chosen.writers))
    print(summary(rounds))
    return 0 if all(one.sound for one in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
