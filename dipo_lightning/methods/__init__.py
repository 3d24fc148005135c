"""LightningModules: when, and on what, an objective is computed."""
