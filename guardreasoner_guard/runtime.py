"""ONNX Runtime: loaded so that it reports nothing to anyone, on the device there is."""

from __future__ import annotations

import os
from typing import Any, Literal

from .errors import DeviceUnavailable, MissingExtra
from .model_dir import Device, ModelDir


def load_runtime() -> Any:
    """ONNX Runtime GenAI, loaded so that it reports nothing to anyone; whatever else needs ONNX Runtime comes after.

    Raises:
        MissingExtra: It is not installed.
    """
    # said before they are loaded; said later, they have given this machine a number and have a thread that reports
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # its tiled attention on a CPU takes twice the time of the plain one at the lengths of a window
    os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    try:
        import onnxruntime  # noqa: F401  (its library must be loaded before the next import)
        import onnxruntime_genai
    except ImportError as error:
        raise MissingExtra(error.name or "onnxruntime-genai", "cpu") from None
    onnxruntime_genai.disable_telemetry_events()  # a guard reports nothing to anyone
    return onnxruntime_genai


def choose_device(runtime: Any, model: ModelDir, asked: Device) -> Literal["cpu", "cuda"]:
    """The device a model directory runs on.

    Args:
        runtime: What `load_runtime` gave.
        model: A checked model directory.
        asked: `auto` takes CUDA where it is usable and the graph was built for it.

    Raises:
        DeviceUnavailable: `cuda` was asked for and cannot be had.
    """
    usable = bool(runtime.is_cuda_available())
    if asked == "cpu" or (asked == "auto" and not (usable and model.manifest.device == "cuda")):
        return "cpu"
    if asked == "cuda" and not usable:
        raise DeviceUnavailable(
            "CUDA was asked for and is not usable here. Install guardreasoner-guard[cuda] in place of [cpu], check "
            "that nvidia-smi shows a GPU, or pass device='cpu'. `guardreasoner doctor` says what is missing."
        )
    if asked == "cuda" and model.manifest.device != "cuda":
        raise DeviceUnavailable(
            f"{model.manifest.name} holds a graph for the CPU ({model.manifest.precision}). Export one for CUDA "
            "(`guardreasoner export MODEL --device cuda`) and name its directory, or pass device='cpu'."
        )
    return "cuda"
