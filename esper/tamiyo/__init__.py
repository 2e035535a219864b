"""Tamiyo: decides when, where and what to graft. No torch in here until the learned rung."""

from __future__ import annotations

from esper.tamiyo.draw import draw, invert, redraw
from esper.tamiyo.ladder import POLICY_NAMES, make_policy, settings_type
from esper.tamiyo.legal import ActionKind, GrowthLimits, KernelOption, Reason, legal_actions, target_of
from esper.tamiyo.observe import FEATURE_SCHEMA, observation_digest
from esper.tamiyo.policy import Foresighted, Policy, require_distribution

__all__ = [
    "FEATURE_SCHEMA",
    "POLICY_NAMES",
    "ActionKind",
    "Foresighted",
    "GrowthLimits",
    "KernelOption",
    "Policy",
    "Reason",
    "draw",
    "invert",
    "legal_actions",
    "make_policy",
    "observation_digest",
    "redraw",
    "require_distribution",
    "settings_type",
    "target_of",
]
