"""Urza's tables: folds of the log into rows, kept in step with it, and the queries over them. No torch."""
