"""ONNX graphs of models: waveform in, features, CTC log-probabilities or speaker scores out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechssl.atomic import replacing
from speechssl.errors import CheckpointError, ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import Bundle, name_of
from speechssl.types import Batch

if TYPE_CHECKING:
    import numpy as np

#: Largest difference from PyTorch that passes, of outputs whose largest value is 1 or less; else
#: in proportion.
TOLERANCE = 1e-4
#: Most bytes of weights that fit into one file: the limit of its format.
_LARGEST = 2**31 - 2**26


@dataclass(frozen=True)
class Check:
    """How far a graph lies from PyTorch on one batch, over its valid frames."""

    samples: tuple[int, ...]  # of each utterance
    max_abs: float
    max_rel: float  # of the largest value
    other_class: float | None  # share of frames or utterances whose likeliest class is another

    @property
    def passes(self) -> bool:
        """Whether rounding alone explains it. NaN does not pass."""
        return self.max_abs <= TOLERANCE or self.max_rel <= TOLERANCE


class Portable(nn.Module):
    """What goes into the graph: a copy of a model with tensors in, tensors out."""

    def __init__(self, bundle: Bundle, layer: int | None = None) -> None:
        """`layer` (a state as `Backbone.context` counts them) gives features whatever the head.

        Raises ConfigError for a layer that does not exist or a backbone without a graph.
        """
        super().__init__()
        backbone = bundle.backbone
        if backbone.cfg.context != "transformer":
            raise ConfigError(
                f"model {bundle.folder}: export is for backbones with context 'transformer', got "
                f"'{backbone.cfg.context}'"
            )
        if layer is not None and not 0 <= layer <= backbone.num_layers:
            raise ConfigError(f"layer: got {layer}, expected 0 to {backbone.num_layers}")
        head = bundle.objective
        name = None if head is None else name_of(head)
        self.output = {"ctc": "log_probs", "speaker": "scores"}.get(name or "", "features")
        if layer is not None:
            self.output = "features"
        self.layer = layer
        model: nn.Module = backbone if self.output == "features" or head is None else head
        self.model = deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.geometry = backbone.geometry
        self.classes = bundle.classes if self.output != "features" else ()
        self.name = str(bundle.folder)

    def forward(self, wave: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Wave (B, S), lens (B,) samples -> output (B, T, ...) and frames (B,); scores (B, S)."""
        frames = self.geometry.frames(lens)
        if isinstance(self.model, Backbone):
            found = self.model(wave, lens, layers=self.layer is not None)
            return (found.x if self.layer is None else found.layers[self.layer]), found.lens
        model: Any = self.model
        batch = Batch([], wave, lens, frames, 0)
        if self.output == "scores":
            return model.logits(model.embed(batch)), frames
        return model.log_probs(batch)


def export(module: Portable, path: str | Path) -> list[Check]:
    """Write the graph of a model and check it; what does not pass is not written.

    Inputs `wave` (B, S) float32 in [-1, 1] at the model's rate, zero where padded, and `lens` (B,)
    int64 samples; outputs `log_probs` (B, T, V), `scores` (B, V) or `features` (B, T, D), and
    `frames` (B,). B and S are free, from one frame on. Rate, frames and classes are in the
    metadata. Raises ConfigError where the packages of the extra `export` are missing,
    CheckpointError for a model beyond the 2 GB of one file or a graph that differs.
    """
    onnx = _package("onnx")
    size = sum(p.numel() * 4 for p in module.model.state_dict().values())
    if size > _LARGEST:
        raise CheckpointError(f"{module.name}: {size / 1e9:.1f} GB of weights; one file holds 2")
    geometry = module.geometry
    samples = geometry.receptive + 20 * geometry.hop
    example = torch.zeros(2, samples), torch.tensor([samples, samples - geometry.hop])
    batch = torch.export.Dim("batch", min=1)
    time = torch.export.Dim("samples", min=geometry.receptive)
    # The exporter warns of its own ways, and that torchvision is not there.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            verbose=False,
            input_names=["wave", "lens"],
            output_names=[module.output, "frames"],
            dynamic_shapes={"wave": {0: batch, 1: time}, "lens": {0: batch}},
        )
    assert program is not None
    with replacing(Path(path)) as fresh:
        program.save(str(fresh), external_data=False)
        graph = onnx.load(str(fresh))
        facts = {
            "rate_hz": geometry.rate_hz,
            "hop_samples": geometry.hop,
            "receptive_samples": geometry.receptive,
            "classes": list(module.classes),
        }
        onnx.helper.set_model_props(graph, {k: json.dumps(v) for k, v in facts.items()})
        onnx.save(graph, str(fresh))
        checks = compare(module, fresh)
        if not all(one.passes for one in checks):
            raise CheckpointError(
                f"{path}: the graph differs from the model by "
                f"{max(one.max_abs for one in checks):.2g}; nothing written"
            )
    return checks


def quantize(module: Portable, graph: str | Path, path: str | Path) -> list[Check]:
    """Write an int8 variant of an exported graph; returns its distance from the model.

    Weights of matrix products per channel, activations as they come (dynamic quantization).
    """
    quantization = _package("onnxruntime.quantization")
    with replacing(Path(path)) as fresh:
        logging.disable(logging.WARNING)  # it advises another tool of its own at every call
        try:
            quantization.quantize_dynamic(
                str(graph),
                str(fresh),
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
        finally:
            logging.disable(logging.NOTSET)
        return compare(module, fresh)


@torch.no_grad()
def compare(module: Portable, path: str | Path, seed: int = 1) -> list[Check]:
    """A graph under ONNX Runtime beside PyTorch: one frame, other lengths, a padded batch."""
    run = session(path)
    geometry = module.geometry
    long = geometry.receptive + 77 * geometry.hop + 5
    generator = torch.Generator().manual_seed(seed)
    found = []
    for lens in ((geometry.receptive,), (long // 3,), (3 * long,), (long, long // 2, long // 5)):
        wave = 0.1 * torch.randn(len(lens), max(lens), generator=generator)
        count = torch.tensor(lens)
        wave[torch.arange(max(lens)) >= count[:, None]] = 0.0
        expected, frames = module(wave, count)
        got, got_frames = map(torch.as_tensor, run(wave.numpy(), count.numpy()))
        if not torch.equal(got_frames, frames):
            raise CheckpointError(f"{path}: counts {got_frames.tolist()} frames, not {frames}")
        if expected.ndim == 3:
            valid = torch.arange(expected.shape[1]) < frames[:, None]
            expected, got = expected[valid], got[valid]
        difference = float((got - expected).abs().nan_to_num(torch.inf).max())
        other = None
        if module.output != "features":
            other = float((got.argmax(-1) != expected.argmax(-1)).float().mean())
        largest = max(float(expected.abs().max()), 1e-30)
        found.append(Check(lens, difference, difference / largest, other))
    return found


def session(path: str | Path) -> Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]:
    """The graph of a file as a function of (wave, lens), on the CPU."""
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    opened = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda wave, lens: opened.run(None, {"wave": wave, "lens": lens})


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"export needs the package {name.split('.')[0]}, which is not installed: "
            "pip install 'speechssl[export]'"
        ) from error
