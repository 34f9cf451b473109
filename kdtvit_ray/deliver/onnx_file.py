"""A model as ONNX: written, given weights of eight bits, and held against PyTorch. The same model gives the same bytes.

Source: torch.onnx (the exporter that traces with torch.export), ONNX Runtime's dynamic quantisation.
"""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kdtvit_ray.deliver.description import Description
from kdtvit_ray.deliver.folder import ONNX_KEY

INPUT, OUTPUT = "input", "logits"


def to_onnx(network: Any, description: Description) -> bytes:
    """An ONNX model of `network`: `input` float32 (batch, 3, S, S), normalised, to `logits` float32 (batch, C). The
    description lies in its metadata."""
    import torch

    size = description.image_size
    example = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1)
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network.float().eval().cpu(),
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    finally:
        chatter.setLevel(level)
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    return _with_description(proto, description)


def to_int8(content: bytes, description: Description) -> bytes:
    """The ONNX model with its weights as whole numbers of eight bits; activations are quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it advises on how to prepare a model for it
        try:
            quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)
        finally:
            root.setLevel(level)
        return _with_description(onnx.load(target), description)


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """The largest absolute difference of two arrays."""
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max()) if first.size else 0.0


def _strip(proto: Any) -> None:
    """Remove what the exporter tells of its own: source lines and paths of the machine."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    for holder in (proto.graph, *proto.functions):
        del holder.metadata_props[:]
        holder.doc_string = ""
        for node in holder.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for each in holder.value_info:
            del each.metadata_props[:]
            each.doc_string = ""
    for each in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""


def _with_description(proto: Any, description: Description) -> bytes:
    del proto.metadata_props[:]
    told = proto.metadata_props.add()
    told.key, told.value = ONNX_KEY, json.dumps(description.to_plain(), sort_keys=True)
    return proto.SerializeToString(deterministic=True)
