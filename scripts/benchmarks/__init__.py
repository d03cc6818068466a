"""What the scripts `bench_*.py` are made of."""
