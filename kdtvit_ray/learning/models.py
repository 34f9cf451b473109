"""Vision transformers by size or by timm name, with seeded initial weights or weights from a file or the hub.

A model's initial weights depend on its spec and seed alone, not on the state of any global generator. Modules that
would make training depend on such a state (dropout) or on the number of workers (batch normalisation) are refused here
by their kind; that a model draws random numbers in any other way shows when it runs (`learning.forward`).
"""

import hashlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn

from kdtvit_ray.data.cache import cache_folder, digest_of, kept_file
from kdtvit_ray.errors import UserError, unknown
from kdtvit_ray.learning.preflight import check_patch
from kdtvit_ray.paths import expanded
from kdtvit_ray.recipe import SIZES, ModelSpec

HUB_SUFFIX = ".safetensors"
"""A file of weights from the hub is a file of the cache like any other: workers copy it as they copy a user's own."""


def build(spec: ModelSpec, seed: int, *, initial: bool = True) -> nn.Module:
    """A model in float32 on the CPU, in train mode, with `spec.classes` outputs.

    `initial=False` leaves out `spec.weights`, for a caller that loads other weights anyway. Raises `UserError` for a
    name, argument or image size that timm does not take, a model whose training could not be reproduced, and weights
    that are missing, of another architecture, or of the hub and not those that `spec.digest` names.
    """
    model = _create(spec, seed)
    if initial and (path := weights_file(spec)):
        _load(model, spec, path)
    return model.float().train()


def weights_file(spec: ModelSpec) -> Path | None:
    """The file of a model's initial weights, None for `none`. What timm's hub has is put into this node's cache, so
    that all nodes of a study start from the same bytes, and only the first one asks the hub. Raises `UserError`."""
    if spec.weights == "none":
        return None
    if spec.weights == "hub":
        kept = cache_folder() / f"{spec.digest}{HUB_SUFFIX}"
        return kept if spec.digest and kept.is_file() and digest_of(kept) == spec.digest else _from_hub(spec)
    path = expanded(spec.weights)
    if not path.is_file():
        raise UserError(
            f"Weights file '{spec.weights}' of model '{spec.name}' does not exist; "
            "allowed: none, hub, or the path of a .safetensors or .pth file"
        )
    return path


def _from_hub(spec: ModelSpec) -> Path:
    """What timm's hub has for a model at its image size, as a file of the cache that is named by its content. A head
    that the hub does not have, because it has other classes or none, is left out: it is drawn from a seed."""
    with _quiet_hub():
        model = _create(spec, 0, pretrained=True).float()
    about: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    own_head = spec.classes == about["num_classes"]
    state = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if own_head or not of_head(name, model)
    }
    content = save(state)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    if spec.digest and spec.digest != digest:
        raise UserError(
            f"The hub's weights of model '{spec.name}' have another content ({digest}) than those of the study "
            f'({spec.digest}); allowed: the same weights as a file, by weights = "FILE.safetensors"'
        )
    return kept_file(content, digest + HUB_SUFFIX)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's client from telling of every attempt: what came of them is told in one sentence."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def of_head(name: str, model: nn.Module) -> bool:
    """Whether a tensor is of the layer that predicts the classes; none is where the model does not tell."""
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return name.rpartition(".")[0] in ((heads,) if isinstance(heads, str) else tuple(heads))


def content_digest(state: Mapping[str, Tensor]) -> str:
    """Digest (32 hex digits) of tensors on the CPU, by name."""
    content = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        content.update(name.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def resolve(spec: ModelSpec) -> tuple[ModelSpec, Path | None]:
    """The spec with the content digest (32 hex digits) of its initial weights, and the file that holds them; "" and
    None where there are none. Raises `UserError`."""
    path = weights_file(replace(spec, digest=""))
    return replace(spec, digest=digest_of(path) if path else ""), path


def mean_std(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the RGB channels, in units of [0, 1], that this model's input is normalised by."""
    about: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return tuple(about["mean"]), tuple(about["std"])


def parameters(model: nn.Module) -> int:
    """Number of parameters that are not frozen: of a model as it is built, its size."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def _create(spec: ModelSpec, seed: int, pretrained: bool = False) -> nn.Module:
    check_name(spec.name)
    with torch.random.fork_rng(devices=[]):
        try:
            model = _made(spec, seed, pretrained)
        except Exception as error:  # timm, its hub client and every model raise kinds of their own
            if pretrained and _is_of_the_hub(error):
                raise UserError(
                    f"The weights of model '{spec.name}' cannot be fetched from timm's hub: "
                    f'{_first_line(error).partition(": ")[2] or error}; allowed besides: weights = "FILE.safetensors"'
                ) from None
            source = "with weights 'hub' " if pretrained else ""
            given = f" with arguments {dict(spec.args)}" if spec.args else ""
            raise UserError(
                f"Model '{spec.name}' cannot be made {source}at image_size {spec.image_size}{given}: "
                f"{_first_line(error)}"
            ) from None
    _check(model, spec)
    return model


def _made(spec: ModelSpec, seed: int, pretrained: bool) -> nn.Module:
    """A model as timm makes it, which keeps the arguments that it was made by, but for its classes, as
    `timm_arguments`. Models that run on images of any size, as many hierarchical ones do, take no size."""
    name, arguments = spec.timm
    arguments["img_size"] = spec.image_size
    torch.manual_seed(seed)
    try:
        model = timm.create_model(name, pretrained, num_classes=spec.classes, **arguments)
    except TypeError as error:
        if "img_size" not in str(error) or "unexpected keyword" not in str(error):
            raise
        del arguments["img_size"]
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained, num_classes=spec.classes, **arguments)
    vars(model)["timm_arguments"] = arguments
    return model


def _is_of_the_hub(error: Exception) -> bool:
    """Whether an error is of the network or of timm's hub, not of the model."""
    client = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or client in ("huggingface_hub", "httpx", "requests", "urllib3")


def check_name(name: str, labels: Iterable[str] = ()) -> None:
    """Raise a `UserError` for a name that is no size and no model of timm; `labels` are those of a space's models."""
    if name in SIZES or ":" in name or timm.is_model(name):
        return
    near = [each for each in timm.list_models() if each.startswith("vit_")]
    own = [each for each in labels if each != name and each not in SIZES]
    found = unknown("model", name, [*own, *SIZES, *near]).split("; allowed")[0]
    of_space = f", or of [models]: {', '.join(own)}" if own else ""
    raise UserError(found + _ALLOWED + of_space)


_ALLOWED = f"; allowed: {', '.join(SIZES)}, or any vision transformer's name in timm"


def _check(model: nn.Module, spec: ModelSpec) -> None:
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    sides = (patch,) if isinstance(patch, int) else patch
    padded = getattr(embed, "dynamic_img_pad", False) and getattr(model, "dynamic_img_size", False)
    if sides and not padded and "img_size" in vars(model)["timm_arguments"]:  # others run on any size
        check_patch(spec, sides)
    for module in model.modules():
        rate = getattr(module, "p", None) or getattr(module, "prob", None) or getattr(module, "drop_prob", None)
        if isinstance(module, nn.Dropout | DropPath | PatchDropout) and rate:
            # some models drop paths by default, so the user may have asked for nothing
            allowed = "args = { drop_path_rate = 0.0 }" if isinstance(module, DropPath) else "no dropout arguments"
            raise UserError(
                f"Model '{spec.name}' has dropout ({type(module).__name__} {rate:.3g}), which cannot be reproduced on "
                f"another number of workers; allowed: {allowed}, and drop_path in the training settings"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"Model '{spec.name}' has batch normalisation, whose result depends on the number of workers" + _ALLOWED
            )


def _load(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Load a weights file: timm's own filter renames keys and resamples patch and position embeddings where they are
    not the model's already; a head of another number of classes, or none, leaves the seeded head in place; anything
    else that differs is refused."""
    state = _read(path)
    own = model.state_dict()
    other = UserError(
        f"Weights file '{spec.weights}' does not fit model '{spec.name}': it holds another architecture; "
        "allowed: weights of the same timm model"
    )
    convert = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    try:
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        if convert is not None and not _fits(state, own, model):
            state = convert(state, model)
    except Exception:  # a filter meets keys and shapes that it was not written for
        raise other from None
    head = {name for name in {*state, *own} if of_head(name, model)}
    if any(name not in state or name not in own or state[name].shape != own[name].shape for name in head):
        state = {name: value for name, value in state.items() if name not in head}
    if set(own) - set(state) - head or set(state) - set(own):
        raise other
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError:
        raise other from None


def _fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether a file has the model's own names and shapes, the head aside."""
    first, second = (
        {name: tensor.shape for name, tensor in each.items() if not of_head(name, model)} for each in (state, own)
    )
    return first == second


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch checkpoint, read without unpickling objects."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
                state = state[wrapper]
                break
        found = {str(name).removeprefix("module."): value for name, value in state.items()}
        if not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError("it holds other things than tensors")
        return found
    except Exception as error:  # safetensors and the unpickler have kinds of their own
        raise UserError(
            f"Weights file '{path}' cannot be read as safetensors or as a torch checkpoint: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
