"""Benchmarks on the machine at hand: of the detector (`model.py`) and of the daemon around it (`pipeline.py`)."""
