"""Programs for those who add models: `python -m octavo.tools.golden` and `python -m octavo.tools.compare`."""
