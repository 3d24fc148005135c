"""The command line, and the environment variables by which a command speaks to those that it starts."""

PARENT = "DIPO_LIGHTNING_PARENT"
"""Environment variable with the process that a run ends with."""

VERBOSE = "DIPO_LIGHTNING_VERBOSE"
"""Environment variable: show what libraries say, too (``--verbose``)."""

STEP = "DIPO_LIGHTNING_STEP"
"""Environment variable of a child process that is a step of a larger command: show bars only."""
