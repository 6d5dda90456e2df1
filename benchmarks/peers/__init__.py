"""What the benchmarks compare with, written from published descriptions."""
