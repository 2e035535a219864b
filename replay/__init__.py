"""Re-living a past run: reading its history, executing it again, comparing, telling what was true when."""
