"""``python -m esper`` is the program ``esper``."""

from __future__ import annotations

from esper.cli.main import main

if __name__ == "__main__":
    main()
