"""What a run trains: data, host and loss behind one protocol, how a task is found, and its sample order.

Belongs here: the `Task` protocol, its data types, `load_task` and `DataOrder`. Does not belong here: the
shipped tasks (``esper.tolaria.tasks``), their hosts (``esper.tolaria.hosts``) or the training loop.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.errors import ConfigError, DependencyUnavailable, NotFound
from esper.tolaria.tasks import SHIPPED

_OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Samples that are used for one purpose.

    Attributes:
        inputs: Tensor ``[N, ...]``, what the host is given.
        targets: Tensor ``[N, ...]``, what the loss compares with.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        """Return the number of samples."""
        return int(self.inputs.shape[0])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the samples at ``indices`` (int64 ``[B]``)."""
        return self.inputs[indices], self.targets[indices]


@dataclass(frozen=True, slots=True, eq=False)
class TaskData:
    """The three splits of a task and a digest of every byte in them.

    Test data is for the one measurement at the end of a run; decisions use validation data.

    Attributes:
        train: What the optimiser sees.
        validation: What policies, gates and the governor see.
        test: What is measured once, at the end.
        source: What tells the samples' source from any other, where the samples are only a part of it; else empty.
        digest: SHA-256 over shape, dtype and bytes of all six tensors and over ``source``, 32 bytes.
    """

    train: Split
    validation: Split
    test: Split
    source: bytes = b""
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        for name, split in self._named():
            if split.size == 0 or split.targets.shape[:1] != split.inputs.shape[:1]:
                raise ConfigError(
                    f"{name} data has {split.size} inputs and targets of shape {tuple(split.targets.shape)}",
                    hint="each split needs at least one sample and one target for each input",
                )
        object.__setattr__(self, "digest", self._hash())

    def _named(self) -> tuple[tuple[str, Split], ...]:
        return (("train", self.train), ("validation", self.validation), ("test", self.test))

    def _hash(self) -> bytes:
        total = hashlib.sha256()
        for name, split in self._named():
            for part, tensor in (("inputs", split.inputs), ("targets", split.targets)):
                total.update(f"{name}.{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                # As raw bytes, so that every dtype (bfloat16 too, which numpy does not know) is covered.
                data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                total.update(data.numpy().data)
        total.update(self.source)
        return total.digest()


class TaskDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Training settings that suit a task; every one can be overridden for a run.

    Attributes:
        steps: Optimiser steps of a run.
        batch_size: Samples a step.
        learning_rate: Rate of the host's parameters.
        steps_per_epoch: Steps between two evaluations; an epoch here is that, not one pass over the data.
        optimizer: Name of the optimiser.
    """

    steps: int
    batch_size: int
    learning_rate: float
    steps_per_epoch: int
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "steps_per_epoch"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"task default {name} is {getattr(self, name)}", hint="it must be above zero")
        if self.optimizer not in _OPTIMIZERS:
            raise ConfigError(
                f"task default optimizer is {self.optimizer!r}",
                hint=f"known optimisers: {', '.join(_OPTIMIZERS)}",
            )


class Task(Protocol):
    """Data, host and loss of something to learn; equal seeds must give equal data and equal hosts."""

    @property
    def name(self) -> str:
        """Short name for tables and reports."""

    @property
    def defaults(self) -> TaskDefaults:
        """Training settings that suit the task."""

    def data(self, seed: int) -> TaskData:
        """Return the three splits that belong to a data seed."""

    def host(self, seed: int) -> nn.Module:
        """Return a new host, initialised from its own generator or after ``torch.manual_seed(seed)``."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, ``[N]``; the loop takes the mean."""

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return which samples were answered right, bool ``[N]``, or ``[N, ...]`` where each has several answers.

        None where nothing is right or wrong.
        """


class Classification:
    """Loss and `correct` of a task whose targets are class numbers, to inherit from."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each sample in nats.

        Args:
            outputs: Logits ``[N, classes]``.
            targets: Class numbers, int64 ``[N]``.
        """
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return where the largest logit is the target's, bool ``[N]``."""
        return outputs.argmax(dim=1) == targets


def load_task(entry: str) -> Task:
    """Return the task that a name or an entry point stands for.

    Args:
        entry: A shipped task's name, or ``package.module:Name`` where Name is an instance or a class whose
            constructor needs no arguments. Modules in the working directory can be named.

    Returns:
        The task, with every part of the protocol checked to be there.

    Raises:
        NotFound: No shipped task, module or attribute has that name.
        DependencyUnavailable: The module exists but imports something that is not installed.
        ConfigError: The module cannot be read, or what is there is no task; the missing part is named.
    """
    target = SHIPPED.get(entry, entry)
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise NotFound(
            f"no task is called {entry!r}",
            hint=f"shipped tasks: {', '.join(sorted(SHIPPED))}; your own is package.module:Name",
        )
    with _importable(Path.cwd()):
        found = _attribute(_import(module_name, entry), attribute, entry)
        if inspect.isclass(found):
            found = _construct(found, entry)
    return _checked(found, entry)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path for the time of the block."""
    place = str(folder)
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # The module that was imported may have changed the path itself; take out one entry, wherever it is.
        if place in sys.path:
            sys.path.remove(place)


def _import(module_name: str, entry: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise NotFound(
                f"no module {missing!r} for task {entry!r} in the working directory or on the import path",
                hint=f"put the module's file there; shipped tasks: {', '.join(sorted(SHIPPED))}",
            ) from error
        raise DependencyUnavailable(
            f"task {entry!r} needs the module {missing!r}, which is not installed",
            hint="install it beside Esper; shipped tasks need the extra `esper[train]`",
        ) from error
    except (ImportError, SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(f"module {module_name!r} of task {entry!r} cannot be imported: {error}") from error


def _attribute(module: Any, path: str, entry: str) -> Any:
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            names = sorted(name for name in vars(module) if not name.startswith("_"))
            raise NotFound(
                f"no {path!r} in module {module.__name__!r} for task {entry!r}",
                hint=f"the module has: {', '.join(names) or 'no public names'}; "
                f"shipped tasks: {', '.join(sorted(SHIPPED))}",
            )
        found = getattr(found, part)
    return found


def _construct(cls: type[Any], entry: str) -> Any:
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise ConfigError(
            f"task {entry!r} cannot be built: {error}",
            hint="give each constructor argument a default, or name an instance",
        ) from error
    return cls()


def _checked(found: Any, entry: str) -> Task:
    for part in ("name", "defaults", "data", "host", "loss", "correct"):
        if not hasattr(found, part):
            raise ConfigError(f"task {entry!r} has no {part!r}", hint="see the Task protocol in esper.tolaria.task")
    if not (isinstance(found.name, str) and found.name):
        raise ConfigError(f"'name' of task {entry!r} is {found.name!r}", hint="it must be a text that is not empty")
    if not isinstance(found.defaults, TaskDefaults):
        raise ConfigError(
            f"'defaults' of task {entry!r} is a {type(found.defaults).__name__}",
            hint="it must be a TaskDefaults",
        )
    for part, arguments in (("data", 1), ("host", 1), ("loss", 2), ("correct", 2)):
        method = getattr(found, part)
        if not callable(method):
            raise ConfigError(f"{part!r} of task {entry!r} cannot be called", hint="it must be a method")
        try:
            inspect.signature(method).bind(*range(arguments))
        except TypeError as error:
            raise ConfigError(
                f"{part!r} of task {entry!r} does not take {arguments} argument(s): {error}",
                hint="see the Task protocol in esper.tolaria.task",
            ) from error
    return cast("Task", found)


class DataOrder:
    """The order in which a run sees its training samples: an endless row of permutations, cut into batches.

    Pass ``p`` over the data is a permutation drawn from a generator of its own, seeded by the order seed and
    ``p``. So the step number alone says which samples come next: a resumed or replayed run needs no generator
    state, and nothing else that draws random numbers can shift the order. Batches always have the full size;
    one that begins at the end of a pass goes on with the next.
    """

    def __init__(self, seed: int, samples: int, batch_size: int) -> None:
        """Prepare the order.

        Args:
            seed: The run's order seed.
            samples: Number of training samples, at least 1.
            batch_size: Samples a step, at least 1.

        Raises:
            ConfigError: A size is below 1.
        """
        if samples < 1 or batch_size < 1:
            raise ConfigError(
                f"cannot order {samples} samples in batches of {batch_size}", hint="both must be at least 1"
            )
        self.seed, self.samples, self.batch_size = seed, samples, batch_size
        self._pass = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Return the sample indices of a step, int64 ``[batch_size]``.

        Args:
            step: Number of the step in the run, from 1, as in ``TrainingStepCompleted``.
        """
        if step < 1:
            raise ValueError(f"steps count from 1, got {step}")
        number, start = divmod((step - 1) * self.batch_size, self.samples)
        end = start + self.batch_size
        if end <= self.samples:
            return self._at(number)[start:end]
        parts = []
        while end > 0:
            parts.append(self._at(number)[start : min(end, self.samples)])
            number, start, end = number + 1, 0, end - self.samples
        return torch.cat(parts)

    def passes(self, step: int) -> float:
        """Return how many passes over the data are done after ``step`` steps."""
        return step * self.batch_size / self.samples

    def _at(self, number: int) -> Tensor:
        if number != self._pass:
            cause = hashlib.sha256(f"esper data order/{self.seed}/{number}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(cause[:8], "big") >> 1)
            self._permutation = torch.randperm(self.samples, generator=generator)
            self._pass = number
        return self._permutation


def samples_digest(indices: Tensor) -> bytes:
    """Return the first 16 bytes of the SHA-256 of sample indices as little-endian int64."""
    return hashlib.sha256(indices.cpu().numpy().astype("<i8").tobytes()).digest()[:16]
