"""What the tables must hold, worked out from the raw log a second time and in another way.

The folds of ``esper.projections`` walk the log once and carry state along. Here nothing is carried: each row is asked
for by its definition (the latest epoch that no later attempt took back, the first resumption that goes back before a
step), over records read with plain SQL and decoded as plain dicts. Nothing of Esper is imported, so that a mistake in
its structs, decoders or folds cannot hide in both.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

Row = dict[str, Any]

_JSON = {
    "architecture_ir": False,
    **dict.fromkeys(
        (
            "reasons", "signature", "symbols", "checks", "numbers", "failed", "config", "seeds", "packages",
            "environment", "data", "evidence", "observation", "legal", "masked", "probabilities", "action", "random",
            "schedule", "pipelines", "tags", "tag_thresholds", "forms", "quarantined",
        ),
        True,
    ),
}  # fmt: skip
_KEYS = {
    "blueprints": "blueprint_id valid_from",
    "compiled_kernels": "kernel_id valid_from",
    "compile_jobs": "job_id valid_from",
    "runs": "run_id valid_from",
    "run_starts": "run_id position",
    "steps": "position",
    "epochs": "position",
    "checkpoints": "position",
    "run_events": "position",
    "sites": "position",
    "kernel_offers": "position place",
    "site_health": "position",
    "seeds": "run_id seed_id valid_from",
    "seed_transitions": "position",
    "decisions": "run_id decision attempt",
    "adaptations": "run_id decision attempt",
    "field_reports": "position",
    "operator_actions": "position",
    "parked_events": "handler position valid_from",
}
_NUMBERING = {"at", "run_id", "attempt", "ordinal", "step", "position", "type", "recorded_at", "sender_id", "trace_id"}


class Raw:
    """A log's records up to a position, as plain dicts."""

    def __init__(self, path: str | Path, until: int) -> None:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            records = connection.execute(
                "SELECT position, type, recorded_at, sender_id, trace_id, payload FROM events"
                " WHERE position <= ? ORDER BY position",
                (until,),
            ).fetchall()
        finally:
            connection.close()
        self.events: list[Row] = []
        self.by_type: dict[str, list[Row]] = defaultdict(list)
        for position, kind, recorded_at, sender_id, trace_id, payload in records:
            event = {
                # A handler's facts have a position of their own: that of the event they are about.
                "position": position,
                **msgspec.msgpack.decode(payload),
                "at": position,
                "type": kind,
                "recorded_at": recorded_at,
                "sender_id": sender_id,
                "trace_id": trace_id,
            }
            self.events.append(event)
            self.by_type[kind].append(event)
        #: By run: (position, attempt that begins, last step that stands, steps done then).
        self.backs: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
        for event in self.of("RunResumed", "RolledBack"):
            to = event["from_step"] if event["type"] == "RunResumed" else event["to_step"]
            bound = to if event["checkpoint_digest"] else -1
            self.backs[event["run_id"]].append((event["position"], event["attempt"], bound, to))

    def of(self, *kinds: str) -> list[Row]:
        """Return the records of some types in order."""
        found = [event for kind in kinds for event in self.by_type[kind]]
        return sorted(found, key=lambda event: event["at"])

    def superseded(self, run_id: str, step: int, attempt: int) -> int | None:
        """Return where the log first says that a later attempt begins before a step."""
        ends = [at for at, later, bound, _ in self.backs.get(run_id, ()) if later > attempt and bound < step]
        return min(ends, default=None)


def _pick(event: Row, names: str, **more: Any) -> Row:
    return {**{name: event[name] for name in names.split()}, **more}


def _dated(raw: Raw, event: Row) -> int | None:
    return raw.superseded(event["run_id"], event["step"], event["attempt"])


def _plain(raw: Raw, kind: str, names: str) -> list[Row]:
    base = "run_id step position attempt "
    return [_pick(event, base + names, superseded_at=_dated(raw, event)) for event in raw.of(kind)]


def _steps(raw: Raw) -> list[Row]:
    return _plain(raw, "TrainingStepCompleted", "epoch loss learning_rate samples_digest duration_s")


def _epochs(raw: Raw) -> list[Row]:
    return _plain(
        raw,
        "EpochCompleted",
        "recorded_at epoch train_loss validation_loss validation_accuracy parameters training_flops parameter_digest"
        " data_digest duration_s",
    )


def _checkpoints(raw: Raw) -> list[Row]:
    return _plain(raw, "CheckpointSaved", "recorded_at digest size_bytes")


def _site_health(raw: Raw) -> list[Row]:
    return _plain(
        raw,
        "SeedHealthMeasured",
        "site depth parameters flops gradient_norm zr zr_over_wgrad effective_rank dormant_frac signal_to_noise"
        " activation_variance dead_frac mean_correlation seeds_present alpha",
    )


def _seed_transitions(raw: Raw) -> list[Row]:
    return _plain(
        raw,
        "SeedTransitioned",
        "recorded_at seed_id site source target trigger reason evidence blueprint_id kernel_id decision parameters",
    )


def _run_starts(raw: Raw) -> list[Row]:
    names = (
        "run_id position recorded_at entry_point config config_version seeds steps_per_epoch git_commit"
        " git_dirty_digest packages environment environment_digest dataset_digest sender_id trace_id"
    )
    return [_pick(event, names) for event in raw.of("RunStarted")]


def _hexed(event: Row, without: set[str]) -> Row:
    kept = {name: value for name, value in event.items() if name not in without}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in kept.items()}


def _run_events(raw: Raw) -> list[Row]:
    found = []
    for event in raw.of("RunStarted"):
        data = _pick(event, "task policy host")
        found.append(_pick(event, "run_id position attempt recorded_at type", step=0, seed_id=None, data=data))
    steps = {"RunResumed": "from_step", "RolledBack": "to_step"}
    suspects = {"GovernorTripped": "suspect_seed_id", "RolledBack": "culled_seed_id"}
    process = ("RunResumed", "RolledBack", "GovernorTripped", "RunPaused", "RunFinished", "RunFailed")
    for event in raw.of(*process):
        kind = event["type"]
        seed = event.get(suspects.get(kind, ""))
        data = _hexed(event, _NUMBERING)
        step = event[steps.get(kind, "step")]
        found.append(_pick(event, "run_id position attempt recorded_at type", step=step, seed_id=seed, data=data))
    for row in found:
        row |= {"site": None, "superseded_at": None}
    for event in raw.of("SeedTransitionRefused", "KernelLoaded", "CounterfactualMeasured", "SeedFaulted", "SeedFolded"):
        data = _hexed(event, _NUMBERING | {"seed_id", "site"})
        names = "run_id step position attempt recorded_at type seed_id site"
        found.append(_pick(event, names, data=data, superseded_at=_dated(raw, event)))
    return found


def _sites(raw: Raw) -> list[Row]:
    names = "run_id site attempt position kind depth signature parameters flops"
    return [_pick(event, names) for event in raw.of("SiteRegistered")]


def _kernel_offers(raw: Raw) -> list[Row]:
    return [
        {**_pick(event, "run_id site attempt position"), "place": place, **offer}
        for event in raw.of("KernelsOffered")
        for place, offer in enumerate(event["offers"])
    ]


def _operator_actions(raw: Raw) -> list[Row]:
    told = {
        "NoteAdded": ("operator/{run_id}", "text"),
        "LogRestored": ("log/{namespace}", "reason"),
        "EventRetried": ("handler/{handler}", "reason"),
        "EventSkipped": ("handler/{handler}", "reason"),
    }
    found = []
    for event in raw.of(*told):
        subject, text = told[event["type"]]
        row = _pick(event, "recorded_at type actor", subject=subject.format(**event), text=event[text])
        found.append(row | {"run_id": event.get("run_id"), "position": event["at"]})
    return found


def _parked_events(raw: Raw) -> list[Row]:
    """One row per version: a parking begins one, and each later fact about the same event the next."""
    versions: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for event in raw.of("EventParked", "EventRetried", "EventSkipped", "BacklogHandled"):
        history = versions[event["handler"], event["position"]]
        at = event["at"]
        if history:
            history[-1]["valid_to"] = at
        if event["type"] == "EventParked":
            names = "handler position event_type event_id event_stream event_version parking attempts"
            names += " member cause message"
            row = _pick(event, names, traceback_digest=event["traceback_digest"], parked_at=event["recorded_at"])
            row |= {"state": "parked", "actor": None, "reason": None, "through": None}
        else:
            row = dict(history[-1])
            if event["type"] == "BacklogHandled":
                row |= {"through": event["through"]}
                row |= {"state": "handled"} if row["state"] == "retrying" else {}
            else:
                state = "retrying" if event["type"] == "EventRetried" else "skipped"
                row |= {"state": state, "actor": event["actor"], "reason": event["reason"]}
        history.append(row | {"valid_from": at, "valid_to": None})
    return [row for history in versions.values() for row in history]


def _field_reports(raw: Raw) -> list[Row]:
    born: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for event in raw.of("SeedTransitioned"):
        if event["source"] == "dormant":
            born[event["run_id"], event["seed_id"]].append(event)
    found = []
    for event in raw.of("FieldReportFiled"):
        births = [one for one in born[event["run_id"], event["seed_id"]] if one["position"] < event["position"]]
        step = births[-1]["step"] + event["steps"]
        names = "run_id position attempt recorded_at seed_id site blueprint_id kernel_id outcome steps gain gain_stderr"
        ended = raw.superseded(event["run_id"], step, event["attempt"])
        found.append(_pick(event, names, step=step, superseded_at=ended))
    return found


def _by_decision(raw: Raw, kind: str) -> dict[tuple[Any, ...], Row]:
    return {(event["run_id"], event["decision"], event["attempt"]): event for event in raw.of(kind)}


def _outcome(event: Row | None) -> Row:
    event = event or {}
    return {
        "executed": event.get("executed"),
        "executed_reason": event.get("reason"),
        "executed_step": event.get("step"),
        "executed_position": event.get("position"),
    }


def _decisions(raw: Raw) -> list[Row]:
    asked, made = _by_decision(raw, "DecisionRequested"), _by_decision(raw, "DecisionMade")
    done = _by_decision(raw, "DecisionExecuted")
    found = []
    for key in asked.keys() | made.keys():
        question, choice = asked.get(key, {}), made.get(key, {})
        first = question or choice
        action = choice["legal"][choice["chosen"]] if choice else {}
        step = question.get("step")
        found.append(
            {
                "run_id": key[0],
                "decision": key[1],
                "attempt": key[2],
                "step": step,
                "epoch": question.get("epoch"),
                "recorded_at": first["recorded_at"],
                "feature_schema": first["feature_schema"],
                "observation_digest": first["observation_digest"],
                "observation": question.get("observation"),
                "requested_position": question.get("position"),
                **{
                    name: choice.get(name)
                    for name in (
                        "policy_id", "policy_digest", "mode", "legal", "masked", "probabilities", "chosen", "uniform",
                        "random",
                    )
                },
                "action_kind": action.get("kind"),
                "action": action or None,
                "probability": choice["probabilities"][choice["chosen"]] if choice else None,
                "made_position": choice.get("position"),
                **_outcome(done.get(key)),
                "superseded_at": None if step is None else raw.superseded(key[0], step, key[2]),
            }
        )  # fmt: skip
    return found


def _adaptations(raw: Raw) -> list[Row]:
    asked, done = _by_decision(raw, "DecisionRequested"), _by_decision(raw, "DecisionExecuted")
    found = []
    for key, event in _by_decision(raw, "AdaptationCommanded").items():
        step = asked.get(key, {}).get("step")
        found.append(
            {
                **_pick(event, "run_id decision attempt position recorded_at"),
                **event["action"],
                "step": step,
                **_outcome(done.get(key)),
                "superseded_at": None if step is None else raw.superseded(key[0], step, key[2]),
            }
        )
    return found


def _versions(points: Iterable[int], state: Callable[[int], Row | None]) -> list[Row]:
    """Return a row for each position at which a state begins, ended by the next one."""
    moments = sorted(set(points))
    found = []
    for place, at in enumerate(moments):
        row = state(at)
        if row is not None:
            until = moments[place + 1] if place + 1 < len(moments) else None
            found.append({**row, "valid_from": at, "valid_to": until})
    return found


def _last(events: list[Row], at: int, *kinds: str, after: int = 0) -> Row:
    found = [event for event in events if event["type"] in kinds and after < event["position"] <= at]
    return found[-1] if found else {}


def _runs(raw: Raw) -> list[Row]:
    mine: dict[str, list[Row]] = defaultdict(list)
    steps: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for event in raw.of("TrainingStepCompleted"):
        steps[event["run_id"]].append((event["position"], event["step"]))
    kinds = ["RunStarted", "EpochCompleted", "RunPaused", "RunFinished", "RunFailed", "RunResumed", "RolledBack"]
    for event in raw.of(*kinds):
        mine[event["run_id"]].append(event)
    found = []
    for run_id, events in mine.items():
        rows = _versions(
            (event["position"] for event in events),
            lambda at, run_id=run_id, events=events: _run(raw, run_id, events, at),
        )
        marks = [(events[0]["position"], 0), *((at, to) for at, _, _, to in raw.backs.get(run_id, ()))]
        marks = sorted([*marks, *steps[run_id]])
        for row in rows:
            until = math.inf if row["valid_to"] is None else row["valid_to"]
            row["steps_done"] = [done for at, done in marks if at < until][-1]
        found += rows
    return found


def _run(raw: Raw, run_id: str, events: list[Row], at: int) -> Row:
    start = events[0]
    began = _last(events, at, "RunStarted", "RunResumed", "RolledBack")
    standing = []
    for event in events:
        if event["type"] == "EpochCompleted" and event["position"] <= at:
            ends = raw.superseded(run_id, event["step"], event["attempt"])
            if ends is None or ends > at:
                standing.append(event)
    epoch = standing[-1] if standing else {}
    end = _last(events, at, "RunPaused", "RunFinished", "RunFailed", after=began["position"])
    finished = end if end.get("type") == "RunFinished" else {}
    measured = finished or epoch
    whys = {
        "RunPaused": lambda: end["reason"],
        "RunFailed": lambda: f"{end['error']}: {end['message']}",
        "RunFinished": lambda: None,
    }
    statuses = {"RunPaused": "paused", "RunFailed": "failed", "RunFinished": "finished"}
    return {
        **_pick(start, "run_id task policy host total_steps parent_run_id parent_position"),
        "status": statuses[end["type"]] if end else "running",
        "attempt": began["attempt"],
        **{name: epoch.get(name) for name in ("epoch", "train_loss", "validation_loss", "validation_accuracy")},
        **{name: finished.get(name) for name in ("test_loss", "test_accuracy", "folded_parameters", "inference_flops")},
        **{name: measured.get(name) for name in ("parameters", "training_flops", "parameter_digest")},
        "started_position": start["position"],
        "started_at": start["recorded_at"],
        "ended_position": end.get("position"),
        "ended_at": end.get("recorded_at"),
        "ended_why": whys[end["type"]]() if end else None,
    }


def _seeds(raw: Raw) -> list[Row]:
    mine: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for event in raw.of("SeedTransitioned", "AlphaMoved", "CounterfactualMeasured", "SeedFaulted", "SeedFolded"):
        mine[event["run_id"], event["seed_id"]].append(event)
    found = []
    for (run_id, _), events in mine.items():
        ends = {event["position"]: _dated(raw, event) for event in events}
        points = [*ends, *(at for at in ends.values() if at is not None)]

        def state(
            at: int, events: list[Row] = events, ends: dict[int, int | None] = ends, run_id: str = run_id
        ) -> Row | None:
            life = [e for e in events if e["position"] <= at and (ends[e["position"]] or math.inf) > at]
            return _seed(raw, run_id, life, at) if life else None

        found += _versions(points, state)
    return found


def _seed(raw: Raw, run_id: str, life: list[Row], at: int) -> Row:
    moves = [event for event in life if event["type"] == "SeedTransitioned"]
    born = [event for event in moves if event["source"] == "dormant"][-1]
    life = [event for event in life if event["position"] >= born["position"]]
    latest, now = life[-1], moves[-1]
    alpha = _last(life, at, "AlphaMoved")
    gain = _last(life, at, "CounterfactualMeasured")
    fold = _last(life, at, "SeedFolded")
    begun = [attempt for position, attempt, _, _ in raw.backs.get(run_id, ()) if position == at]
    gone = [position for position, _, bound, _ in raw.backs.get(run_id, ()) if position > at and bound < latest["step"]]
    return {
        "run_id": run_id,
        "seed_id": latest["seed_id"],
        "attempt": begun[0] if begun else latest["attempt"],
        "site": now["site"],
        "state": now["target"],
        "state_step": now["step"],
        "germinated_step": born["step"],
        "last_step": latest["step"],
        "blueprint_id": next((m["blueprint_id"] for m in reversed(moves) if m["blueprint_id"] is not None), None),
        "kernel_id": next((m["kernel_id"] for m in reversed(moves) if m["kernel_id"] is not None), None),
        "parameters": now["parameters"],
        "alpha": alpha.get("alpha"),
        "alpha_target": alpha.get("target"),
        "gain": gain.get("gain"),
        "gain_stderr": gain.get("gain_stderr"),
        "gain_step": gain.get("step"),
        "decision": born["decision"],
        "faults": sum(event["type"] == "SeedFaulted" for event in life),
        "folded_into": fold.get("folded_into"),
        "fold_difference": fold.get("max_difference"),
        "superseded_at": min(gone, default=None),
    }


def _blueprints(raw: Raw) -> list[Row]:
    mine: dict[str, list[Row]] = defaultdict(list)
    kinds = [
        "BlueprintSubmitted", "BlueprintRejected", "BlueprintRetired", "KernelCompiled", "CompilationFailed",
        "CompilationLeased",
    ]  # fmt: skip
    for event in raw.of(*kinds):
        before = mine[event["blueprint_id"]]
        settled = any(e["type"] in {"KernelCompiled", "BlueprintRetired"} for e in before)
        if event["type"] != "CompilationLeased" or not settled:
            before.append(event)
    found = []
    for events in mine.values():
        found += _versions((e["position"] for e in events), lambda at, events=events: _blueprint(events, at))
    return found


def _blueprint(events: list[Row], at: int) -> Row:
    entry = _last(events, at, "BlueprintSubmitted", "BlueprintRejected")
    since = entry["position"]
    retired = _last(events, at, "BlueprintRetired", after=since)
    failed = _last(events, at, "CompilationFailed", after=since)
    tried = _last(events, at, "CompilationFailed", "CompilationLeased", after=since)
    kernels = {e["kernel_id"] for e in events if e["type"] == "KernelCompiled" and e["position"] <= at}
    rejected = entry["type"] == "BlueprintRejected"
    if retired:
        status = "retired"
    elif rejected:
        status = "failed"
    else:
        tries = {"CompilationFailed": "failed", "CompilationLeased": "compiling"}
        status = "compiled" if kernels else tries.get(tried.get("type", ""), "submitted")
    return {
        "blueprint_id": entry["blueprint_id"],
        "name": entry["name"],
        "kind": entry.get("kind"),
        "status": status,
        "submitted_by": entry["submitted_by"],
        "architecture_ir": entry.get("architecture_ir"),
        "reasons": entry.get("reasons", []),
        "kernels": 0 if rejected else len(kernels),
        "last_error": f"{failed['error']}: {failed['message']}" if failed else None,
        "retired_by": retired.get("actor"),
        "retired_reason": retired.get("reason"),
        "parent": entry.get("parent"),
        "mutation": entry.get("mutation"),
        "novelty": entry.get("novelty"),
    }


def _compiled_kernels(raw: Raw) -> list[Row]:
    mine: dict[str, list[Row]] = defaultdict(list)
    kinds = [
        "KernelCompiled", "KernelCharacterized", "KernelValidated", "KernelRejected", "KernelFormCompiled",
        "KernelFormRefused", "MeasurementRequested", "KernelTagged", "KernelQuarantined",
    ]  # fmt: skip
    for event in raw.of(*kinds):
        mine[event["kernel_id"]].append(event)
    found = []
    for events in mine.values():
        found += _versions((e["position"] for e in events), lambda at, events=events: _kernel(events, at))
    return found


def _kernel(events: list[Row], at: int) -> Row:
    made = _last(events, at, "KernelCompiled")
    since = made["position"]
    measured = _last(events, at, "KernelCharacterized", after=since)
    judged = _last(events, at, "KernelValidated", "KernelRejected", after=since)
    statuses = {"KernelValidated": "validated", "KernelRejected": "rejected"}
    latest = _last(events, at, "KernelCharacterized", "KernelValidated", "KernelRejected", after=since)
    stopped = _last(events, at, "KernelValidated", "KernelRejected", "KernelQuarantined", after=since)
    bad = stopped if stopped.get("type") == "KernelQuarantined" else {}
    wanted = _last(events, at, "MeasurementRequested", "KernelCharacterized", after=since)
    tagged = _last(events, at, "KernelTagged", after=since)
    names = (
        "kernel_id blueprint_id signature symbols parameters flops size_bytes compile_seconds toolchain"  # as compiled
    )
    return {
        **_pick(made, names),
        "status": "pending_benchmarking" if bad else statuses.get(judged.get("type", ""), "pending_benchmarking"),
        **{
            name: measured.get(name)
            for name in ("checks", "numbers", "latency_p50_s", "latency_p99_s", "measured_seconds")
        },
        "failed": judged.get("failed"),
        "measurements_digest": latest.get("measurements_digest"),
        "measured_toolchain": measured.get("toolchain"),
        "measured_hardware": measured.get("hardware"),
        "peak_memory_bytes": measured.get("peak_memory_bytes"),
        "measurement_wanted": wanted.get("reason"),
        "compile_memory_bytes": made.get("peak_memory_bytes"),
        **{name: made.get(name) for name in ("job_id", "worker", "hardware", "signed_by")},
        **{name: tagged.get(name) for name in ("tags", "compared_with", "risk", "confidence")},
        "tag_thresholds": tagged.get("thresholds"),
        "forms": _forms(events, since, at),
        "quarantined": None
        if not bad
        else {
            **_pick(bad, "reason message found_by"),
            "evidence_digest": None if bad["evidence_digest"] is None else bad["evidence_digest"].hex(),
        },
    }


def _forms(events: list[Row], since: int, at: int) -> list[Row]:
    statuses = {"KernelFormCompiled": "compiled", "KernelFormRefused": "refused"}
    latest: dict[tuple[str, ...], Row] = {}
    for event in events:
        if event["type"] in statuses and since <= event["position"] <= at:
            key = (event["pipeline"], event["toolchain"], event["hardware"])
            latest.pop(key, None)
            kept = {
                name: value for name, value in event.items() if name not in _NUMBERING | {"blueprint_id", "kernel_id"}
            }
            plain = {name: value.hex() if isinstance(value, bytes) else value for name, value in kept.items()}
            latest[key] = {"status": statuses[event["type"]], **plain}
    return list(latest.values())


def _compile_jobs(raw: Raw) -> list[Row]:
    mine: dict[str, list[Row]] = defaultdict(list)
    for event in raw.of("CompilationRequested", "CompilationLeased", "KernelCompiled", "CompilationFailed"):
        if event.get("job_id") is not None:
            mine[event["job_id"]].append(event)
    found = []
    for events in mine.values():
        if any(event["type"] == "CompilationRequested" for event in events):
            found += _versions((e["position"] for e in events), lambda at, events=events: _job(events, at))
    return found


def _job(events: list[Row], at: int) -> Row:
    asked = _last(events, at, "CompilationRequested")
    since = asked["position"]
    leased = _last(events, at, "CompilationLeased", after=since)
    made = _last(events, at, "KernelCompiled", after=since)
    failed = _last(events, at, "CompilationFailed", after=since)
    latest = _last(events, at, "CompilationLeased", "KernelCompiled", "CompilationFailed", after=since)
    statuses = {"CompilationLeased": "leased", "KernelCompiled": "compiled", "CompilationFailed": "failed"}
    leases = [e for e in events if e["type"] == "CompilationLeased" and since < e["position"] <= at]
    return {
        **_pick(asked, "job_id blueprint_id signature pipelines requested_by"),
        "status": statuses.get(latest.get("type", ""), "requested"),
        **{name: leased.get(name) for name in ("worker", "token", "attempt")},
        "leases": len(leases),
        "kernel_id": made.get("kernel_id"),
        "reason": failed.get("reason"),
        "last_error": f"{failed['error']}: {failed['message']}" if failed else None,
    }


MODEL: dict[str, Callable[[Raw], list[Row]]] = {
    "blueprints": _blueprints,
    "compiled_kernels": _compiled_kernels,
    "compile_jobs": _compile_jobs,
    "runs": _runs,
    "run_starts": _run_starts,
    "steps": _steps,
    "epochs": _epochs,
    "checkpoints": _checkpoints,
    "run_events": _run_events,
    "sites": _sites,
    "kernel_offers": _kernel_offers,
    "site_health": _site_health,
    "seeds": _seeds,
    "seed_transitions": _seed_transitions,
    "decisions": _decisions,
    "adaptations": _adaptations,
    "field_reports": _field_reports,
    "operator_actions": _operator_actions,
    "parked_events": _parked_events,
}


def _comparable(value: Any) -> Any:
    """Make not-a-numbers equal to themselves and keep all else as it is."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, dict):
        return {name: _comparable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(part) for part in value]
    return value


def _stored(connection: sqlite3.Connection, table: str) -> list[Row]:
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    found = []
    for values in cursor.fetchall():
        row = dict(zip(names, values, strict=True))
        for name in names:
            if _JSON.get(name) and row[name] is not None:
                row[name] = json.loads(row[name])
        found.append(row)
    return found


def check_tables(log_path: str | Path, tables_path: str | Path) -> dict[str, int]:
    """Compare every table of a file with what its log gives at the tables' checkpoint.

    Args:
        log_path: SQLite file of the log.
        tables_path: SQLite file of the tables.

    Returns:
        Rows compared, by table.

    Raises:
        AssertionError: Names the first few rows that differ.
    """
    connection = sqlite3.connect(f"file:{tables_path}?mode=ro", uri=True)
    try:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert names == {*MODEL, "projection_checkpoints"}, (
            f"tables without a model, or the reverse: {names ^ {*MODEL}}"
        )
        (until,) = connection.execute("SELECT position FROM projection_checkpoints WHERE log = 'main'").fetchone()
        raw = Raw(log_path, until)
        assert len(raw.events) == until, f"the log has {len(raw.events)} records, the tables say {until}"
        return {table: _check(table, _stored(connection, table), model(raw)) for table, model in MODEL.items()}
    finally:
        connection.close()


def _check(table: str, stored: list[Row], expected: list[Row]) -> int:
    names = _KEYS[table].split()

    def keyed(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
        found = {tuple(row[name] for name in names): _comparable(row) for row in rows}
        assert len(found) == len(rows), f"{table}: two rows have one key"
        return found

    left, right = keyed(stored), keyed(expected)
    missing, extra = right.keys() - left.keys(), left.keys() - right.keys()
    assert not missing, f"{table}: {len(missing)} rows are missing, e.g. {sorted(missing)[:3]}"
    assert not extra, f"{table}: {len(extra)} rows are too many, e.g. {sorted(extra)[:3]}"
    for key, row in left.items():
        other = right[key]
        assert row.keys() == other.keys(), f"{table}: columns differ: {row.keys() ^ other.keys()}"
        wrong = {name: (row[name], other[name]) for name in row if row[name] != other[name]}
        assert not wrong, f"{table} {key}: (stored, expected) {wrong}"
    return len(left)
