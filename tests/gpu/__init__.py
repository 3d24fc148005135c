"""Checks on a CUDA device; they skip themselves where there is none."""
