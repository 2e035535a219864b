"""The processes: daemons that react to facts, on one shared runtime."""
