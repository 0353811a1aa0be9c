"""The kernels: one op, or one close family, in one file. Files with an underscore are what they are made with.

Every file without an underscore is imported here, so a new op is found without being listed.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
