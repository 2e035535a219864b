"""The page of metrics lists every metric, with its type and labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

import esper.metrics

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(esper_\w+)` \| (\w+) \| ([^|]*)\| .+ \|$", re.MULTILINE)


def in_code() -> dict[str, tuple[str, list[str]]]:
    found = {}
    for value in vars(esper.metrics).values():
        if isinstance(value, MetricWrapperBase):
            (metric,) = value.describe()
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            found[name] = (metric.type, list(value._labelnames))
    return found


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    documented = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in _ROW.findall(PAGE)}
    assert documented == in_code()
    assert len(documented) > 10


def test_no_metric_is_named_that_does_not_exist() -> None:
    assert set(re.findall(r"\besper_[a-z_]+", PAGE)) <= set(in_code())
