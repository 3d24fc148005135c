"""Selective unlearning: the private values of an answer go, its sentence and everything else stay."""
