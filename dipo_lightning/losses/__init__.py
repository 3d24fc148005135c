"""Tensor functions that the methods share: pure, without models, Lightning or files.

Positions are selected beforehand: `logits` (N, V) and `labels` (N,) hold supervised positions only, and `sequence_ids`
(N,) gives the sequence of the batch that each belongs to.
"""
