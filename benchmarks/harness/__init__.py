"""The measuring part of the benchmarks: cases, parity check, times, memory, ceilings, reports."""
