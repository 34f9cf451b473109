"""Sequential teacher-to-student distillation of vision transformers over magnifications, searched on Ray.

In a notebook: `import kdtvit_ray as kd`, then `kd.prepare`, `kd.open_study`, `kd.run_chain`, `kd.predict`
(`kdtvit_ray.deliver.notebook` has them; they are loaded when they are first asked for).
"""

from typing import Any

__version__ = "0.1.0"
_NAMES = ("open_study", "predict", "prepare", "run_chain")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from kdtvit_ray.deliver import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
