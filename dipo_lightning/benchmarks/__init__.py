"""Benchmarks, one folder each: data, data module, metrics and callback."""
