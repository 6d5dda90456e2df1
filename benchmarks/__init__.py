"""Measurements of ponder_zoo against its peers: `python -m benchmarks --list`."""
