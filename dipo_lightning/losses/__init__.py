"""Tensor functions that the methods share: pure, without models, Lightning or files.

Positions are selected before they come here: `logits` (N, V) and `labels` (N,) hold supervised positions only,
`sequence_ids` (N,) says which sequence of the batch each belongs to.
"""
