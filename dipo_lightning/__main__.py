"""``python -m dipo_lightning`` is the command ``dipo-lightning``."""

import sys

from dipo_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
