"""What Esper counts and times about itself, in the process's Prometheus registry.

Belongs here: every metric's name, unit and labels; docs/reference/metrics.md lists them. Does not belong here: where
they are shown (``esper.handlers.runtime``) or what is written to the log, which is never a metric.
"""

from __future__ import annotations

import math

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

APPEND_SECONDS = Histogram(
    "esper_log_append_seconds",
    "Seconds from handing a batch to the log to its receipt, forcing to disk included.",
    ["adapter"],
    buckets=_SECONDS,
)
APPEND_EVENTS = Histogram("esper_log_append_events", "Facts in one append.", ["adapter"], buckets=_EVENTS)
APPEND_FSYNCED = Counter(
    "esper_log_append_fsynced_total", "Appends that were on stable storage when acknowledged.", ["adapter"]
)
APPEND_FAILED = Counter(
    "esper_log_append_failed_total", "Appends that were refused, by error code.", ["adapter", "code"]
)
LOG_MEMORY_BYTES = Gauge("esper_log_memory_bytes", "Memory the log's server uses.", ["adapter"])
LOG_MEMORY_LIMIT_BYTES = Gauge("esper_log_memory_limit_bytes", "Memory it may use; 0 for no limit.", ["adapter"])
LOG_UNSEALED_EVENTS = Gauge("esper_log_unsealed_events", "Facts past the last signed checkpoint.")
# Only a sealer looks: until then it was not measured, which is not 0.
LOG_UNSEALED_EVENTS.set(math.nan)
SPOOL_BYTES = Gauge("esper_spool_bytes", "Bytes of facts that wait on local disk for the log to come back.")
SPOOL_STALLS = Counter("esper_spool_stalls_total", "Times a producer waited because the spool was full.")
HANDLER_EVENTS = Counter("esper_handler_events_total", "Events by handler and outcome.", ["handler", "outcome"])
HANDLER_SECONDS = Histogram("esper_handler_seconds", "Seconds one event takes.", ["handler"], buckets=_SECONDS)
HANDLER_LAG_EVENTS = Gauge("esper_handler_lag_events", "Events between a handler and the end of the log.", ["handler"])
HANDLER_LAG_SECONDS = Gauge("esper_handler_lag_seconds", "Age of the oldest event not handled yet.", ["handler"])
HANDLER_PARKED = Gauge("esper_handler_parked", "Events that are parked now.", ["handler"])
JOBS = Counter("esper_jobs_total", "Jobs that were brought to a result, by outcome.", ["handler", "outcome"])
JOB_SECONDS = Histogram(
    "esper_job_seconds",
    "Seconds one job takes its child process.",
    ["handler"],
    buckets=(*_SECONDS, 20.0, 60.0, 120.0),
)
JOBS_ACTIVE = Gauge("esper_jobs_active", "Jobs that are being done in child processes.", ["handler"])
KERNEL_CACHE_REQUESTS = Counter(
    "esper_kernel_cache_requests_total", "Kernels that were wanted, by how they were had.", ["outcome"]
)
KERNEL_CACHE_BYTES = Gauge("esper_kernel_cache_bytes", "Bytes of kernels and of branches made ahead, in memory.")
KERNEL_CACHE_EVICTIONS = Counter("esper_kernel_cache_evictions_total", "Kernels that went to make room.")
KERNEL_FETCH_SECONDS = Histogram(
    "esper_kernel_fetch_seconds", "Seconds to fetch and check one kernel.", ["outcome"], buckets=_SECONDS
)
KERNEL_STALL_SECONDS = Histogram(
    "esper_kernel_stall_seconds", "Seconds that training waited for a kernel it was to graft.", buckets=_SECONDS
)
