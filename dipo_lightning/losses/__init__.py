"""Unlearning objectives: pure functions of tensors, one idea a file.

Nothing here knows of models, Lightning or files. Positions are selected before they come here: `logits` (N, V) and
`labels` (N,) hold supervised positions only, `rows` (N,) says which row of the batch each belongs to.
"""
