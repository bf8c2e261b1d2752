"""What several tests and benchmarks stand on: real processes, put together small."""
