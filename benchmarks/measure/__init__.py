"""How the benchmarks measure: time, memory, bandwidth, models in processes of their own."""
