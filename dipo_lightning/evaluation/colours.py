"""Colours of all pictures: colour-blind readers can tell them apart, and each model has one colour everywhere."""

MODEL, RETAIN_MODEL, TARGET = "#0072b2", "#d55e00", "#009e73"
MARK = "#000000"
"""Colour of marks, such as a distance or a limit."""
CURVES = (RETAIN_MODEL, MODEL, TARGET, "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of several curves of one model, in the order of their use."""
