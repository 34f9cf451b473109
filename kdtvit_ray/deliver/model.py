"""A trained model that takes images: from an export's folder, from its ONNX file alone, or from a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdtvit_ray.deliver import folder
from kdtvit_ray.deliver.description import Description
from kdtvit_ray.errors import UserError, first_line
from kdtvit_ray.paths import StudyFolder, expanded

BATCH = 32
"""Images that an ONNX model is given at once."""
ALLOWED = "the folder of an export, its .onnx file, or a study"


class Model(Protocol):
    """`description` says how images become inputs and outputs decisions; `batch` images are best given at once; `notes`
    are sentences on what differs from the study; `development` gives the checksums of the images that it was trained or
    chosen on, None where they are not known."""

    description: Description
    batch: int
    notes: tuple[str, ...]

    def development(self) -> frozenset[bytes] | None: ...

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities (B, C) float64 of images uint8 (B, S, S, 3)."""
        ...


class OnnxModel:
    """A model in ONNX Runtime on the CPU. Its protobuf file holds numbers and names, no code."""

    def __init__(self, content: bytes, where: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            told = self._session.get_modelmeta().custom_metadata_map.get(folder.ONNX_KEY)
        except Exception as error:  # ONNX Runtime's own kinds
            raise UserError(f"Model '{where}' cannot be read as ONNX: {first_line(error)[:200]}") from None
        if told is None:
            raise UserError(
                f"Model '{where}' does not say how it is used; allowed: an ONNX file that 'kdtvit-ray export' has "
                "written"
            )
        self.description = folder.parsed(told, where)
        self.batch = BATCH
        self.notes: tuple[str, ...] = (self.description.float32_note,) if self.description.in_bfloat16 else ()

    def development(self) -> frozenset[bytes] | None:
        return self.description.checksums

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Logits (B, C) float32 of normalised inputs (B, 3, S, S)."""
        return self._session.run(None, {self._session.get_inputs()[0].name: inputs})[0]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        return self.description.probabilities(self.logits(self.description.normalised(images)))


class TorchModel:
    """A model in PyTorch, on a GPU where there is one. With the study's number of `threads` (0) the numbers are the
    study's own on the same kind of device. `development` is asked once, where it is needed."""

    def __init__(
        self,
        network: Any,
        description: Description,
        threads: int = 0,
        device: Any = None,
        development: Callable[[], frozenset[bytes] | None] | None = None,
    ) -> None:
        from kdtvit_ray.learning.evaluate import batch_of
        from kdtvit_ray.learning.feed import Normaliser
        from kdtvit_ray.learning.numeric import has_bfloat16, pick_device
        from kdtvit_ray.recipe import Numeric

        self.description = description
        self.notes: tuple[str, ...] = ()
        self.device = pick_device(device)
        dtype = description.numeric["dtype"]
        if dtype == "bfloat16" and not has_bfloat16(self.device):
            dtype = "float32"
            self.notes = (description.float32_note,)
        self.numeric = Numeric(dtype, threads or int(description.numeric["threads"]))
        self.network = network.float().eval().to(self.device)
        told = description.preprocessing
        self.normaliser = Normaliser(told["mean"], told["std"], description.image_size, self.device)
        self.batch = batch_of(self.device, description.image_size)
        self._development = development

    def development(self) -> frozenset[bytes] | None:
        return self._development() if self._development else self.description.checksums

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (B, C) float32 of images uint8 (B, S, S, 3). Every batch has `batch` images, as in a study; a short
        one repeats some. So an image's logits have the same bits whatever images come with it."""
        import torch

        from kdtvit_ray.learning.numeric import autocast, numeric_mode

        found = []
        with torch.no_grad(), numeric_mode(self.numeric, self.device):
            for start in range(0, len(images), self.batch):
                part = images[start : start + self.batch]
                whole = np.take(part, np.arange(self.batch) % len(part), axis=0)
                inputs = self.normaliser(torch.from_numpy(whole).to(self.device))
                with autocast(self.numeric, self.device):
                    outputs = self.network(inputs)
                found.append(outputs.float().cpu().numpy()[: len(part)])
        return np.concatenate(found)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        import torch

        from kdtvit_ray.learning.evaluate import softmax

        offsets = self.description.logit_offsets
        added = torch.tensor(offsets, dtype=torch.float64) if len(offsets) else 0.0
        return softmax(self.logits(images), added)


def open_model(source: str, trial: str = "", threads: int = 0) -> Model:
    """The model at `source`: the folder of an export, its `.onnx` file, or a study, of which `trial` (default: the
    best) says which model. Raises `UserError` for what is none of these, and for a model of which the file that is used
    is missing or was changed."""
    path = expanded(source)
    exported = path.is_file() or (path / folder.CONFIG).is_file()
    if exported and trial:
        raise UserError(f"'{source}' is an exported model and no study, so it takes no --trial")
    if path.is_file():
        if path.suffix.lower() != ".onnx":
            raise UserError(f"'{source}' is a file, and no ONNX model; allowed: {ALLOWED}")
        return OnnxModel(folder.onnx_content(path), path, threads)
    if exported:
        torch = _has_torch()
        config = folder.verified(path, folder.WEIGHTS if torch else folder.ONNX)
        if torch:
            return TorchModel(folder.network(path, config), folder.description(config, path), threads)
        return OnnxModel((path / folder.ONNX).read_bytes(), path / folder.ONNX, threads)
    if "://" not in source and not (path / StudyFolder.study).exists():
        raise UserError(_why_no_model(source, path))
    return of_study(source, trial, threads)


def _why_no_model(source: str, path: Path) -> str:
    """What is wrong with a local place that is neither an export nor a study."""
    if not path.exists():
        return f"Model '{source}' does not exist; allowed: {ALLOWED}"
    if any((path / name).is_file() for name in (folder.WEIGHTS, folder.ONNX, folder.ONNX_INT8)):
        return f"Model '{source}' lacks {folder.CONFIG}; copy the whole folder that 'kdtvit-ray export' has written"
    return f"'{source}' holds neither {folder.CONFIG} nor {StudyFolder.study}; allowed: {ALLOWED}"


def of_study(location: str, trial: str = "", threads: int = 0) -> TorchModel:
    """A trial's model of a study; `trial` as for `choose_model`."""
    from kdtvit_ray.deliver.model_choice import BEST, choose_model, describe, network_of
    from kdtvit_ray.deliver.study_images import development_of, prepared_of

    chosen = choose_model(location, trial or BEST)
    told = describe(chosen)

    def development() -> frozenset[bytes] | None:
        prepared = prepared_of(chosen)
        return None if prepared is None else development_of(chosen, prepared, told)

    return TorchModel(network_of(chosen), told, threads, development=development)


def _has_torch() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):
        return False
