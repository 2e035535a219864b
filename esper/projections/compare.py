"""Two runs side by side: what they began with, where they ran, what came out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from esper.projections.queries import get_run, run_seeds
from esper.projections.reading import Row

_SETUP = ("task", "policy", "host", "entry_point", "total_steps", "steps_per_epoch", "dataset_digest")
_PLACE = ("git_commit", "git_dirty_digest", "environment_digest")
_OUTCOME = (
    "status", "attempt", "steps_done", "train_loss", "validation_loss", "validation_accuracy", "test_loss",
    "test_accuracy", "parameters", "folded_parameters", "training_flops", "inference_flops", "parameter_digest",
)  # fmt: skip


def compare_runs(connection: Connection, a: str, b: str, *, at: int | None = None, everything: bool = False) -> Row:
    """Return two runs' settings, environment and outcome side by side.

    Args:
        connection: The tables.
        a: One run.
        b: The other run.
        at: Position; None for now.
        everything: Also what is the same; only differences by default.

    Returns:
        ``runs`` (both ids) and the groups ``setup``, ``config``, ``seeds``, ``environment``, ``packages`` and
        ``metrics``: each a dict of dotted name -> [value of a, value of b]. What one run does not have is None.

    Raises:
        NotFound: A run is not there.
    """
    first, second = get_run(connection, a, at=at), get_run(connection, b, at=at)
    for run in (first, second):
        states = [seed["state"] for seed in run_seeds(connection, run["run_id"], at=at)]
        run["seeds_grown"] = len(states)
        run["seeds_fossilized"] = states.count("fossilized")

    def group(pick: Any) -> dict[str, list[Any]]:
        left, right = pick(first), pick(second)
        names = [*left, *(name for name in right if name not in left)]
        pairs = {name: [left.get(name), right.get(name)] for name in names}
        return pairs if everything else {name: pair for name, pair in pairs.items() if not _same(*pair)}

    return {
        "runs": [first["run_id"], second["run_id"]],
        "setup": group(lambda run: {name: run[name] for name in _SETUP}),
        "config": group(lambda run: flatten(run["config"])),
        "seeds": group(lambda run: flatten(run["seeds"])),
        "environment": group(lambda run: {**{name: run[name] for name in _PLACE}, **flatten(run["environment"])}),
        "packages": group(lambda run: dict(run["packages"])),
        "metrics": group(lambda run: {name: run[name] for name in (*_OUTCOME, "seeds_grown", "seeds_fossilized")}),
    }


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted names; lists stay values."""
    if not isinstance(data, dict):
        return {prefix: data}
    if not data:
        return {prefix: {}} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)  # noqa: PLR0124 two values that are not numbers agree
