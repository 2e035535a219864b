"""The command line: one file per noun, nothing heavy imported before a command runs."""
