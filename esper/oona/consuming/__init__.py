"""Consumers: events handed out at least once, in order within each stream, under leases."""
