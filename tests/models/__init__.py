"""Tests of dipo_lightning.models."""
