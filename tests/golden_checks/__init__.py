"""How each golden file is checked: through the functions and classes that training uses.

A check is given the file's arrays, the number format and `compare(name, got)`, which compares with the stored
array at the file's tolerance. Nothing assumes how many rows or classes a file has.
"""

from __future__ import annotations

import importlib
import pkgutil

CHECKS = {
    name: check
    for module in pkgutil.iter_modules(__path__)
    if module.name != "method"
    for name, check in importlib.import_module(f"{__name__}.{module.name}").CHECKS.items()
}
