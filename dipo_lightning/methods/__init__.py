"""Methods: a loss and its LightningModule per file.

A class called ``...Module`` in a file of this folder is a public name of the package; nothing has to be registered.
"""

import re
from pathlib import Path

_CLASS = re.compile(r"^class ([A-Z]\w*Module)\(", re.MULTILINE)


def module_classes() -> dict[str, str]:
    """Find the modules of this folder: ``{"NPOModule": "dipo_lightning.methods.preference", ...}``.

    The files are read and not imported, so that the package loads without Lightning.
    """
    folder, found = Path(__file__).parent, {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        for name in _CLASS.findall(path.read_text(encoding="utf-8")):
            found[name] = ".".join((__name__, *parts))
    return found
