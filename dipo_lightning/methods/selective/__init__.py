"""Selective unlearning, which forgets the private values of an answer and preserves its sentence and all else."""
