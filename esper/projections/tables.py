"""Urza's tables as SQLAlchemy Core definitions, portable between SQLite and PostgreSQL.

Belongs here: columns, keys and what they mean. Does not belong here: how facts become rows (``folds``) or how rows
are read (``queries``).

Two kinds of table. Append-only tables keep one row per fact, with its ``position`` in the log. Mutable tables keep
one row per version of a thing: ``valid_from`` is the position that made the row true, ``valid_to`` the position that
ended it, NULL while it is true. Rows that a resumed or rolled-back run took back keep standing and say so in
``superseded_at``; they are effective while that is NULL. Digests are raw bytes. A float that is not a number is kept
as the text ``NaN``, because SQLite turns a NaN into NULL, which here always means "not measured".
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Index, Table
from sqlalchemy.schema import CreateTable

from esper.projections.columns import flag, integer, json_text, metadata, of_run, raw, real, table, text, versioned

#: Raised when a fold gives other rows for the same facts, so that tables of the old folds are rebuilt.
FOLDS_VERSION = 2


blueprints = versioned(
    "blueprints",
    "blueprint_id",
    text("name", null=True),
    text("kind", null=True),
    text("status"),
    text("submitted_by"),
    text("architecture_ir", null=True),
    json_text("reasons"),
    integer("kernels"),
    text("last_error", null=True),
    text("retired_by", null=True),
    text("retired_reason", null=True),
    text("parent", null=True),
    text("mutation", null=True),
    real("novelty", null=True),
)

compiled_kernels = versioned(
    "compiled_kernels",
    "kernel_id",
    text("blueprint_id"),
    text("status"),
    json_text("signature"),
    json_text("symbols"),
    integer("parameters"),
    integer("flops"),
    integer("size_bytes"),
    real("compile_seconds"),
    text("toolchain"),
    json_text("checks", null=True),
    json_text("numbers", null=True),
    json_text("failed", null=True),
    raw("measurements_digest", null=True),
    real("latency_p50_s", null=True),
    real("latency_p99_s", null=True),
    real("measured_seconds", null=True),
    text("measured_toolchain", null=True),
    text("measured_hardware", null=True),
    integer("peak_memory_bytes", null=True),
    text("measurement_wanted", null=True),
    text("job_id", null=True),
    text("worker", null=True),
    integer("compile_memory_bytes", null=True),
    text("hardware", null=True),
    text("signed_by", null=True),
    json_text("tags", null=True),
    json_text("tag_thresholds", null=True),
    integer("compared_with", null=True),
    real("risk", null=True),
    real("confidence", null=True),
    json_text("forms"),
    json_text("quarantined", null=True),
)
Index("compiled_kernels_of_blueprint", compiled_kernels.c.blueprint_id)

#: Kernels that were asked for. ``status``: requested, leased, compiled or failed; ``leases`` counts the workers.
compile_jobs = versioned(
    "compile_jobs",
    "job_id",
    text("blueprint_id"),
    text("status"),
    json_text("signature"),
    json_text("pipelines"),
    text("requested_by"),
    text("worker", null=True),
    integer("token", null=True),
    integer("attempt", null=True),
    integer("leases"),
    text("kernel_id", null=True),
    text("reason", null=True),
    text("last_error", null=True),
)
Index("compile_jobs_of_blueprint", compile_jobs.c.blueprint_id)

#: Where each run stands. ``steps_done`` is followed step by step without a version of its own.
runs = versioned(
    "runs",
    "run_id",
    text("task"),
    text("policy"),
    text("host"),
    text("status"),
    integer("attempt"),
    integer("steps_done"),
    integer("total_steps"),
    integer("epoch", null=True),
    real("train_loss", null=True),
    real("validation_loss", null=True),
    real("validation_accuracy", null=True),
    real("test_loss", null=True),
    real("test_accuracy", null=True),
    integer("parameters", null=True),
    integer("folded_parameters", null=True),
    integer("training_flops", null=True),
    integer("inference_flops", null=True),
    raw("parameter_digest", null=True),
    text("parent_run_id", null=True),
    integer("parent_position", null=True),
    integer("started_position"),
    integer("started_at"),
    integer("ended_position", null=True),
    integer("ended_at", null=True),
    text("ended_why", null=True),
)

#: What a run began with; apart from ``runs``, because it never changes and is large.
run_starts = table(
    "run_starts",
    "run_id position",
    text("run_id"),
    integer("position"),
    integer("recorded_at"),
    text("entry_point", null=True),
    json_text("config"),
    integer("config_version"),
    json_text("seeds"),
    integer("steps_per_epoch"),
    text("git_commit", null=True),
    raw("git_dirty_digest", null=True),
    json_text("packages"),
    json_text("environment"),
    raw("environment_digest"),
    raw("dataset_digest", null=True),
    text("sender_id"),
    text("trace_id"),
)

steps = of_run(
    "steps",
    integer("epoch"),
    real("loss"),
    real("learning_rate"),
    raw("samples_digest", null=True),
    real("duration_s"),
    compact=True,
)

epochs = of_run(
    "epochs",
    integer("recorded_at"),
    integer("epoch"),
    real("train_loss"),
    real("validation_loss", null=True),
    real("validation_accuracy", null=True),
    integer("parameters"),
    integer("training_flops"),
    raw("parameter_digest"),
    raw("data_digest"),
    real("duration_s"),
)

checkpoints = of_run(
    "checkpoints",
    integer("recorded_at"),
    raw("digest"),
    integer("size_bytes"),
)

#: What happened to a run or its seeds that no other table tells: starts, ends, trips, refusals, faults, folds.
run_events = of_run(
    "run_events",
    integer("recorded_at"),
    text("type"),
    text("seed_id", null=True),
    text("site", null=True),
    json_text("data"),
)

sites = table(
    "sites",
    "run_id site attempt position",
    text("run_id"),
    text("site"),
    integer("attempt"),
    integer("position"),
    text("kind"),
    integer("depth"),
    json_text("signature"),
    integer("parameters"),
    integer("flops"),
)

#: Kernels a run may graft, by site.
kernel_offers = table(
    "kernel_offers",
    "run_id site attempt position place",
    text("run_id"),
    text("site"),
    integer("attempt"),
    integer("position"),
    integer("place"),
    text("kernel_id"),
    text("blueprint_id"),
    text("name"),
    integer("parameters"),
    integer("flops"),
)

site_health = of_run(
    "site_health",
    text("site"),
    integer("depth"),
    integer("parameters"),
    integer("flops"),
    real("gradient_norm", null=True),
    real("zr", null=True),
    real("zr_over_wgrad", null=True),
    real("effective_rank", null=True),
    real("dormant_frac", null=True),
    real("signal_to_noise", null=True),
    real("activation_variance", null=True),
    real("dead_frac", null=True),
    real("mean_correlation", null=True),
    integer("seeds_present"),
    real("alpha"),
    compact=True,
)

#: ``superseded_at`` on a version: the run went back to before this state was reached.
seeds = versioned(
    "seeds",
    "run_id seed_id",
    integer("attempt"),
    text("site"),
    text("state"),
    integer("state_step"),
    integer("germinated_step"),
    integer("last_step"),
    text("blueprint_id", null=True),
    text("kernel_id", null=True),
    integer("parameters"),
    real("alpha", null=True),
    real("alpha_target", null=True),
    real("gain", null=True),
    real("gain_stderr", null=True),
    integer("gain_step", null=True),
    integer("decision", null=True),
    integer("faults"),
    text("folded_into", null=True),
    real("fold_difference", null=True),
    integer("superseded_at", null=True),
)
Index("seeds_of_blueprint", seeds.c.blueprint_id)

seed_transitions = of_run(
    "seed_transitions",
    integer("recorded_at"),
    text("seed_id"),
    text("site"),
    text("source"),
    text("target"),
    text("trigger"),
    text("reason"),
    json_text("evidence"),
    text("blueprint_id", null=True),
    text("kernel_id", null=True),
    integer("decision", null=True),
    integer("parameters"),
)

#: One row per decision of an attempt, filled in as its facts come. A column group is NULL before its position.
decisions = table(
    "decisions",
    "run_id decision attempt",
    text("run_id"),
    integer("decision"),
    integer("attempt"),
    integer("step", null=True),
    integer("epoch", null=True),
    integer("recorded_at"),
    text("feature_schema", null=True),
    raw("observation_digest", null=True),
    json_text("observation", null=True),
    integer("requested_position", null=True),
    text("policy_id", null=True),
    raw("policy_digest", null=True),
    text("mode", null=True),
    json_text("legal", null=True),
    json_text("masked", null=True),
    json_text("probabilities", null=True),
    integer("chosen", null=True),
    text("action_kind", null=True),
    json_text("action", null=True),
    real("probability", null=True),
    real("uniform", null=True),
    json_text("random", null=True),
    integer("made_position", null=True),
    flag("executed", null=True),
    text("executed_reason", null=True),
    integer("executed_step", null=True),
    integer("executed_position", null=True),
    integer("superseded_at", null=True),
)

#: One row per command to Kasmina, with what came of it.
adaptations = table(
    "adaptations",
    "run_id decision attempt",
    text("run_id"),
    integer("decision"),
    integer("attempt"),
    integer("step", null=True),
    integer("position"),
    integer("recorded_at"),
    text("kind"),
    text("site", null=True),
    text("seed_id", null=True),
    text("blueprint_id", null=True),
    text("kernel_id", null=True),
    json_text("schedule", null=True),
    flag("executed", null=True),
    text("executed_reason", null=True),
    integer("executed_step", null=True),
    integer("executed_position", null=True),
    integer("superseded_at", null=True),
)

field_reports = of_run(
    "field_reports",
    integer("recorded_at"),
    text("seed_id"),
    text("site"),
    text("blueprint_id"),
    text("kernel_id"),
    text("outcome"),
    integer("steps"),
    real("gain", null=True),
    real("gain_stderr", null=True),
)
Index("field_reports_of_blueprint", field_reports.c.blueprint_id)

#: What people did; ``subject`` is the stream it was done to, ``run_id`` the run where it is one.
operator_actions = table(
    "operator_actions",
    "position",
    integer("position"),
    text("subject"),
    text("run_id", null=True),
    integer("recorded_at"),
    text("type"),
    text("actor"),
    text("text"),
)

#: Events that a handler gave up on. ``state``: parked, retrying, handled or skipped.
parked_events = versioned(
    "parked_events",
    "handler position",
    text("state"),
    text("event_type"),
    raw("event_id"),
    text("event_stream"),
    integer("event_version"),
    integer("parking"),
    integer("attempts"),
    text("member"),
    text("cause"),
    text("message"),
    raw("traceback_digest", null=True),
    integer("parked_at"),
    text("actor", null=True),
    text("reason", null=True),
    integer("through", null=True),
    numbers={"position"},
)

#: How far the tables follow each log; written in the transaction that writes the rows.
projection_checkpoints = table(
    "projection_checkpoints",
    "log",
    text("log"),
    integer("position"),
    raw("chain"),
    text("format"),
)

#: Every table that holds facts, by name; the checkpoint's own table is not one of them.
PROJECTED: dict[str, Table] = {
    table.name: table for table in metadata.sorted_tables if table is not projection_checkpoints
}

#: Append-only tables whose rows a resumption or a rollback takes back by step.
SUPERSEDED_BY_STEP: tuple[Table, ...] = (
    steps,
    epochs,
    checkpoints,
    run_events,
    site_health,
    seed_transitions,
    field_reports,
    decisions,
    adaptations,
)


def tables_format() -> str:
    """Return what names the form of these tables: folds version and a digest of all definitions."""
    text = "".join(str(CreateTable(table)) for table in metadata.sorted_tables)
    return f"{FOLDS_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
