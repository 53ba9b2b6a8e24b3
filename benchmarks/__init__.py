"""Benchmarks of ssgrl_fast beside its rivals: ``python -m benchmarks.run``; README.md here says what and how."""
