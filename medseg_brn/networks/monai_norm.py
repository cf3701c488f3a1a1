"""Makes MONAI's Norm factory know the layer, without importing MONAI for it."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_FACTORIES = "monai.networks.layers.factories"


def register_in_monai() -> None:
    """Lets MONAI networks take `norm="batchrenorm"`: now, or as soon as MONAI is imported."""
    factories = sys.modules.get(_FACTORIES)
    if factories is not None:
        _register(factories)
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())


def _register(factories: ModuleType) -> None:
    factories.Norm.add_factory_callable("batchrenorm", _batch_renorm_class)


def _batch_renorm_class(dim: int) -> type:
    """Batch renormalization layers in 1, 2, 3 dimensions."""
    from medseg_brn.networks import batch_renorm

    return (batch_renorm.BatchRenorm1d, batch_renorm.BatchRenorm2d, batch_renorm.BatchRenorm3d)[dim - 1]


class _RegisterAfterImport(MetaPathFinder):
    """Finds MONAI's factories like the ordinary finder does, and registers the layer once they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FACTORIES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        sys.meta_path.remove(self)
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        loader.exec_module = execute_and_register
        return spec
