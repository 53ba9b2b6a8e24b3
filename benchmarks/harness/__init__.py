"""How benchmarks measure: cases, times, memory, ceilings, reports."""
