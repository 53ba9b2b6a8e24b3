"""Benchmarks of ssgrl_fast and other implementations ("rivals"): ``python -m benchmarks.run``; see README.md."""
