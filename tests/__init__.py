"""Tests of dipo_lightning."""
