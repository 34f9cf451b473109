"""Names that libraries do not promise, and that this package uses for want of public ones: the installed versions have
them. Where one is gone, the file that uses it needs another way."""

from importlib import import_module
from inspect import unwrap

import pytest
import torch

ON_CUDA = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
RAY_TRAIN = "ray.train.v2._internal.execution"


@pytest.mark.parametrize(
    ("user", "module", "name"),
    [
        ("cluster/connection.py", f"{RAY_TRAIN}.controller.placement_group_cleaner", "logger"),
        ("cluster/group_run.py", f"{RAY_TRAIN}.callback", "WorkerGroupCallback.before_init_train_context"),
        ("cluster/group_run.py", f"{RAY_TRAIN}.worker_group.worker", "Worker.metadata"),
        ("cluster/group_run.py", f"{RAY_TRAIN}.worker_group.worker", "ActorMetadata.node_id"),
        ("cluster/group_run.py", "ray.train.backend", "Backend.share_cuda_visible_devices"),
        ("cluster/group_run.py", "ray.train.torch", "TorchConfig.backend_cls"),
        ("cluster/group_run.py", "ray.train.torch", "TorchConfig.train_func_context"),
        ("cluster/tuner.py", "ray.tune.execution.tune_controller", "TuneController._actor_cache"),
        ("cluster/tuner.py", "ray.tune.execution.tune_controller", "_ObjectCache.increase_max"),
        ("deliver/maps.py", "timm.layers.attention", "Attention.fused_attn"),
        ("deliver/maps.py", "timm.layers.attention", "Attention.attn_drop"),
        ("learning/compiling.py", "torch._dynamo", "config.patch"),
        ("learning/compiling.py", "torch._dynamo", "config.automatic_dynamic_shapes"),
        ("learning/compiling.py", "torch._dynamo", "config.recompile_limit"),
        ("learning/compiling.py", "torch._dynamo", "config.accumulated_recompile_limit"),
        ("learning/compiling.py", "torch._dynamo", "config.fail_on_recompile_limit_hit"),
        ("learning/compiling.py", "torch._dynamo", "lookup_backend"),
        ("learning/compiling.py", "torch._dynamo", "reset"),
        ("learning/compiling.py", "torch._dynamo.utils", "counters"),
        ("learning/compiling.py", "torch._inductor.config", "patch"),
        ("learning/compiling.py", "torch._inductor.config", "deterministic"),
        ("learning/models.py", "timm.models.vision_transformer", "checkpoint_filter_fn"),
        ("learning/models.py", "torch.nn.modules.batchnorm", "_BatchNorm"),
        pytest.param("learning/recorded.py", "torch._C", "_cuda_endAllocateToPool", marks=ON_CUDA),
        pytest.param("learning/recorded.py", "torch._C", "_cuda_releasePool", marks=ON_CUDA),
        ("study/search.py", "optuna.samplers", "TPESampler._search_space"),
        ("study/search.py", "optuna.samplers", "NSGAIISampler._search_space"),
        ("study/search.py", "optuna.study", "Study._storage"),
        ("study/search.py", "optuna.trial", "FrozenTrial._trial_id"),
        ("study/search.py", "optuna.trial", "Trial._trial_id"),
        ("study/search.py", "optuna.storages", "BaseStorage.set_trial_intermediate_value"),
        ("study/search.py", "optuna.storages", "BaseStorage.set_trial_param"),
    ],
)
def test_the_installed_versions_have_it(user, module, name):
    try:
        found = import_module(module)
    except ImportError as error:
        pytest.fail(f"kdtvit_ray/{user} uses {module}, which cannot be imported: {error}")
    for part in name.split("."):
        if not hasattr(found, part) and _is_set(part, found):
            return
        assert hasattr(found, part), f"kdtvit_ray/{user} uses {module}.{name}, which is gone"
        found = getattr(found, part)


def _is_set(name, kind):
    """Whether instances of a class have an attribute that the class itself lacks: a field, or one that it sets."""
    made = unwrap(getattr(kind, "__init__", None))
    return name in getattr(kind, "__annotations__", {}) or name in getattr(
        getattr(made, "__code__", None), "co_names", ()
    )
