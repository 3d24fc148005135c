"""The command line, and the environment variables by which a command controls its child processes."""

PARENT = "DIPO_LIGHTNING_PARENT"
"""Environment variable with the id of the parent process, with which a run ends."""

VERBOSE = "DIPO_LIGHTNING_VERBOSE"
"""Environment variable that shows messages of libraries too (``--verbose``)."""

STEP = "DIPO_LIGHTNING_STEP"
"""Environment variable of a child process that is a step of a larger command and shows progress bars only."""
