"""The adapters: importing this package imports every module in its folder, and each registers its backbones."""

from __future__ import annotations

import importlib
import pkgutil

from ..backbone import BACKBONES as BACKBONES
from ..backbone import find_backbone as find_backbone

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
