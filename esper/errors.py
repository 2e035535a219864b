"""Every error Esper raises on purpose, as one tree.

Belongs here: exception classes with their stable code and hint. Does not belong here: how they are printed
(``esper.cli``) or turned into exit codes (``esper.cli.failures``).

::

    EsperError
    ├── ConfigError (ValueError)             E-CFG-*
    │   ├── UnknownSetting
    │   └── ConfigVersionMismatch
    ├── NotFound (LookupError)               E-NF-*
    ├── DependencyUnavailable (ConnectionError)  E-DEP-*
    ├── LogError                             E-LOG-*
    │   ├── ConcurrencyConflict
    │   ├── EventIdReused (ValueError)
    │   ├── LogDamaged (ValueError)
    │   ├── LogUnavailable (ConnectionError)
    │   ├── LogFull (OSError)
    │   ├── DurabilityTooLow (ValueError)
    │   ├── RecorderStopped (RuntimeError)
    │   ├── LeaseLost (RuntimeError)
    │   ├── HistoryUnsealed (ValueError)
    │   ├── ProofFailed (ValueError)
    │   ├── SpoolDamaged (ValueError)
    │   └── SpoolRefused
    ├── BusError                             E-BUS-*
    │   ├── BusConnectionError (ConnectionError)
    │   ├── PublishError
    │   └── ConsumptionError
    ├── HandlerError (RuntimeError)          E-HND-*
    ├── SchemaError (ValueError)             E-SCH-*
    │   ├── UnknownEventType (LookupError)
    │   ├── UpcastMissing (LookupError)
    │   └── EventTooLarge
    ├── ArtifactError                        E-ART-*
    │   ├── ArtifactMissing (LookupError)
    │   ├── ArtifactDamaged (ValueError)
    │   ├── ArtifactConflict (ValueError)
    │   ├── SignatureInvalid (ValueError)
    │   └── ArtifactStoreUnavailable (ConnectionError)
    ├── BlueprintError (ValueError)          E-BP-*
    │   ├── BlueprintInvalid
    │   ├── KernelRefused
    │   └── WorkFailed
    ├── GrowthError                          E-GRW-*
    │   ├── SiteUnsupported (ValueError)
    │   ├── IllegalTransition (ValueError)
    │   └── PolicyInvalid (ValueError)
    ├── TrainingError (RuntimeError)         E-TRN-*
    │   ├── HostFailed
    │   ├── Diverged
    │   └── CheckpointDamaged (ValueError)
    ├── ProjectionError                      E-PRJ-*
    │   ├── LogRegressed
    │   ├── ProjectionDiverged
    │   └── PoisonEvent (ValueError)
    └── ReplayError                          E-RPL-*
        ├── ReplayDiverged
        ├── NotReexecutable
        └── EnvironmentMismatch
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar


class EsperError(Exception):
    """Something Esper was asked to do cannot be done."""

    code: ClassVar[str] = "E-000"
    hint: str = ""

    def __init__(self, message: str | None = None, *, hint: str | None = None, **attributes: Any) -> None:
        """Build the error.

        Args:
            message: What happened and where; the class docstring's first line when left out.
            hint: What to do about it; the class default when left out.
            attributes: Typed details (positions, names, paths), set as attributes of the error.
        """
        text = message or (type(self).__doc__ or "").strip().split("\n")[0]
        super().__init__(text)
        self.message = text
        if hint is not None:
            self.hint = hint
        self.attributes = attributes
        for name, value in attributes.items():
            setattr(self, name, value)


class ConfigError(EsperError, ValueError):
    """A setting has a value that cannot be used."""

    code = "E-CFG-001"


class UnknownSetting(ConfigError):
    """A setting is not known."""

    code = "E-CFG-002"
    hint = "run `esper config show` to see every setting"


class ConfigVersionMismatch(ConfigError):
    """A configuration was written for another version of Esper."""

    code = "E-CFG-003"


class NotFound(EsperError, LookupError):
    """What was named does not exist."""

    code = "E-NF-001"


class DependencyUnavailable(EsperError, ConnectionError):
    """Something Esper depends on cannot be reached or is not installed."""

    code = "E-DEP-001"


class LogError(EsperError):
    """The log refused an operation."""

    code = "E-LOG-001"


class ConcurrencyConflict(LogError):
    """A stream moved on since its version was read.

    Attributes:
        stream: The stream appended to.
        expected: The version the caller expected.
        current: The version the stream has.
    """

    code = "E-LOG-002"
    hint = "another writer owns this stream now; read it again before you append"
    stream: str
    expected: int
    current: int


class EventIdReused(LogError, ValueError):
    """An event id was used before for a different fact.

    Attributes:
        event_id: The id in hexadecimal.
        position: Where the first fact with that id stands.
    """

    code = "E-LOG-003"
    event_id: str
    position: int


class LogDamaged(LogError, ValueError):
    """The log's bytes are not what was written.

    Attributes:
        position: The first position that cannot be trusted.
        reason: What was found there.
    """

    code = "E-LOG-004"
    hint = "`esper log salvage TARGET` writes the longest verified prefix to a new log"
    position: int
    reason: str


class LogUnavailable(LogError, ConnectionError):
    """The log cannot be reached."""

    code = "E-LOG-005"


class LogFull(LogError, OSError):
    """The log cannot take more: its disk or memory is full. Nothing was written."""

    code = "E-LOG-006"
    hint = "free space, then start again; every acknowledged fact is kept"


class DurabilityTooLow(LogError, ValueError):
    """The log cannot keep the durability it is configured for."""

    code = "E-LOG-007"


class RecorderStopped(LogError, RuntimeError):
    """The background recorder stopped; later facts were not accepted."""

    code = "E-LOG-008"


class LeaseLost(LogError, RuntimeError):
    """A lease was taken over by another owner, or could not be renewed in time.

    Attributes:
        name: Name of the lease.
        owner: Who holds it now; empty if nobody is known to.
    """

    code = "E-LOG-009"
    hint = "what was done under the lease is not committed; its new owner does it again"
    name: str
    owner: str


class HistoryUnsealed(LogError, ValueError):
    """History can be trimmed only where it is sealed, read back and verified."""

    code = "E-LOG-010"


class ProofFailed(LogError, ValueError):
    """A proof, a checkpoint or a segment does not hold against the log."""

    code = "E-LOG-011"


class SpoolDamaged(LogError, ValueError):
    """A spool file's bytes are not what was written.

    Attributes:
        path: The file.
        offset: Where in the file, in bytes.
        reason: What was found there.
    """

    code = "E-LOG-012"
    hint = "what stands before that byte is delivered; move the file out of the spool folder to go on without the rest"
    path: Path
    offset: int
    reason: str


class SpoolRefused(LogError):
    """The log does not take what a spool file holds.

    Attributes:
        path: The file, which is kept.
    """

    code = "E-LOG-013"
    path: Path


class BusError(EsperError):
    """The message bus cannot do what it was asked."""

    code = "E-BUS-001"


class BusConnectionError(BusError, ConnectionError):
    """The bus cannot be reached; exported as ``esper.oona.ConnectionError``."""

    code = "E-BUS-002"


class PublishError(BusError):
    """A message could not be published."""

    code = "E-BUS-003"


class ConsumptionError(BusError):
    """Messages could not be consumed."""

    code = "E-BUS-004"


class HandlerError(EsperError, RuntimeError):
    """A handler cannot run."""

    code = "E-HND-001"


class SchemaError(EsperError, ValueError):
    """A fact does not have the form its type demands."""

    code = "E-SCH-001"


class UnknownEventType(SchemaError, LookupError):
    """An event type is not registered."""

    code = "E-SCH-002"


class UpcastMissing(SchemaError, LookupError):
    """No upcaster leads from a stored schema to the current one."""

    code = "E-SCH-003"


class EventTooLarge(SchemaError):
    """A fact is larger than the log takes; put the bytes in the artifact store and name their digest."""

    code = "E-SCH-004"


class ArtifactError(EsperError):
    """The artifact store refused an operation."""

    code = "E-ART-001"


class ArtifactMissing(ArtifactError, LookupError):
    """No artifact has that digest."""

    code = "E-ART-002"


class ArtifactDamaged(ArtifactError, ValueError):
    """An artifact's bytes do not have the digest they are stored under."""

    code = "E-ART-003"


class ArtifactConflict(ArtifactError, ValueError):
    """Another object stands under a name that is written once."""

    code = "E-ART-004"


class SignatureInvalid(ArtifactError, ValueError):
    """A signature is missing, is not of a trusted key, or does not fit what was signed.

    Attributes:
        reason: Of an artifact: unsigned, unknown_key or wrong_signature; else empty.
    """

    code = "E-ART-005"
    reason: str = ""


class ArtifactStoreUnavailable(ArtifactError, ConnectionError):
    """The artifact store cannot be reached, or does not answer in time."""

    code = "E-ART-006"
    hint = "nothing was lost; try again when it answers"


class BlueprintError(EsperError, ValueError):
    """A blueprint or kernel cannot be used."""

    code = "E-BP-001"


class BlueprintInvalid(BlueprintError):
    """A blueprint breaks a rule of the IR.

    Attributes:
        path: Where in the document, e.g. ``nodes[2].attr.k``.
        rule: Stable name of the rule that was broken.
    """

    code = "E-BP-002"
    path: str
    rule: str


class KernelRefused(BlueprintError):
    """A kernel failed a check of the crucible or does not fit the site."""

    code = "E-BP-003"


class WorkFailed(BlueprintError):
    """Work on a blueprint or kernel was stopped in the process that did it, or that process died.

    Attributes:
        reason: error, time_limit, memory_limit, died, forked or stopped.
    """

    code = "E-BP-004"
    reason: str


class GrowthError(EsperError):
    """Growth inside the host model was refused."""

    code = "E-GRW-001"


class SiteUnsupported(GrowthError, ValueError):
    """A module cannot carry a seed."""

    code = "E-GRW-002"


class IllegalTransition(GrowthError, ValueError):
    """The lifecycle has no such edge.

    Attributes:
        source: State the seed is in.
        target: State that was asked for.
    """

    code = "E-GRW-003"
    source: str
    target: str


class PolicyInvalid(GrowthError, ValueError):
    """A policy's answer is no distribution over the legal actions."""

    code = "E-GRW-004"


class TrainingError(EsperError, RuntimeError):
    """Training cannot go on."""

    code = "E-TRN-001"


class HostFailed(TrainingError):
    """The host model or its task raised; the run was recorded as failed."""

    code = "E-TRN-002"


class Diverged(TrainingError):
    """The governor found the run diverged and no rollback was left."""

    code = "E-TRN-003"


class CheckpointDamaged(TrainingError, ValueError):
    """A checkpoint cannot be read."""

    code = "E-TRN-004"


class ProjectionError(EsperError):
    """A table cannot be kept."""

    code = "E-PRJ-001"


class LogRegressed(ProjectionError):
    """The log is not the one the tables were built from: it went backwards or was rewritten."""

    code = "E-PRJ-002"
    hint = "check which log is opened; `esper projections rebuild` builds the tables of this log anew"


class ProjectionDiverged(ProjectionError):
    """A table does not have the contents that the log gives it."""

    code = "E-PRJ-003"
    hint = "`esper projections rebuild` builds it anew from the log"


class PoisonEvent(ProjectionError, ValueError):
    """A fact cannot be folded into a table."""

    code = "E-PRJ-004"


class ReplayError(EsperError):
    """A run cannot be replayed."""

    code = "E-RPL-001"


class ReplayDiverged(ReplayError):
    """Re-execution did not give what was recorded.

    Attributes:
        position: Log position of the recorded fact.
        step: Training step, or None.
        quantity: The field that differs, e.g. ``TrainingStepCompleted.loss``.
        expected: What the log holds.
        got: What re-execution gave.
    """

    code = "E-RPL-002"
    position: int
    step: int | None
    quantity: str
    expected: str
    got: str


class NotReexecutable(ReplayError):
    """The run's loop is not Esper's: its facts can be verified, its steps cannot be run again."""

    code = "E-RPL-003"


class EnvironmentMismatch(ReplayError):
    """This machine or toolchain is not the one the run was recorded on."""

    code = "E-RPL-004"
    hint = "use --tolerance to compare within a tolerance instead of bit for bit"
