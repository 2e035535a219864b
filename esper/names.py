"""Plain names that several parts share: topics and statuses. No behaviour, no imports from Esper."""

from __future__ import annotations

from enum import StrEnum


class TopicNames(StrEnum):
    """The topics of the log; every fact type has exactly one."""

    TELEMETRY_SEED_HEALTH = "telemetry.seed.health"
    CONTROL_KASMINA_COMMANDS = "control.kasmina.commands"
    COMPILATION_BLUEPRINT_SUBMITTED = "compilation.blueprint.submitted"
    COMPILATION_KERNEL_READY = "compilation.kernel.ready"
    VALIDATION_KERNEL_CHARACTERIZED = "validation.kernel.characterized"
    SYSTEM_EVENTS_EPOCH = "system.events.epoch"
    INNOVATION_FIELD_REPORTS = "innovation.field_reports"
    TRAINING_STEPS = "training.steps"
    TRAINING_RUNS = "training.runs"
    CONTROL_DECISIONS = "control.decisions"
    OPERATOR_ACTIONS = "operator.actions"
    OONA_DEAD = "oona.dead"


class KernelStatus(StrEnum):
    """What a kernel has been through; VALIDATED only with stored raw measurements."""

    COMPILING = "compiling"
    PENDING_BENCHMARKING = "pending_benchmarking"
    VALIDATED = "validated"
    REJECTED = "rejected"


class BlueprintStatus(StrEnum):
    """What a blueprint has been through."""

    SUBMITTED = "submitted"
    COMPILING = "compiling"
    COMPILED = "compiled"
    FAILED = "failed"
    RETIRED = "retired"


class RunStatus(StrEnum):
    """What a run has come to."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
