"""The DALI pipelines of the model repository, and their serialisation (`insync export dali`).

`model.dali` runs on the CPU; `model_gpu.dali`, which `configs/h100.pbtxt` uses, decodes with nvJPEG and warps on the GPU.
Neither file contains a device number, and both are written without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types
from nvidia.dali._utils import dali_trace

from insync.core.spec import CROP_SIZE, MODELS
from insync.ensemble.models.log_mel import log_mel

MODEL_FILE = "model.dali"
GPU_MODEL_FILE = "model_gpu.dali"


def preprocess(batch_size: int, threads: int = 1, gpu: bool = False) -> Pipeline:
    """Define the pipeline of `lipsync_preprocess`.

    FRAME uint8 [N] (JPEG or PNG), AUDIO float32 [6400] → IMAGE uint8 [H, W, 3] RGB, MEL float32 [80, 40].

    Args:
        batch_size: the most samples of one run.
        threads: CPU threads of DALI.
        gpu: decode with nvJPEG and leave IMAGE on the GPU. The log-mel is computed by CPU operators in both cases:
            copying 12 kB per frame is quick, and the network gets exactly the values that it was trained on.
    """
    pipeline = _pipeline(batch_size, threads)
    with pipeline:
        frame = fn.external_source(name="FRAME", ndim=1, dtype=types.UINT8)
        audio = fn.external_source(name="AUDIO", ndim=1, dtype=types.FLOAT)
        image = fn.decoders.image(frame, device="mixed" if gpu else "cpu", output_type=types.RGB)
        pipeline.set_outputs(image, log_mel(audio))
    return pipeline


def align(batch_size: int, threads: int = 1, gpu: bool = False) -> Pipeline:
    """Define the pipeline of `lipsync_align`.

    IMAGE uint8 [H, W, 3], TRANSFORM float32 [2, 3] (frame → crop) → CROP float32 [3, 256, 256] in [0, 1].

    Args:
        batch_size: the most samples of one run.
        threads: CPU threads of DALI.
        gpu: read IMAGE from the GPU and leave CROP there; TRANSFORM comes from the host, where the face is found.
    """
    pipeline = _pipeline(batch_size, threads)
    with pipeline:
        image = fn.external_source(
            name="IMAGE", ndim=3, dtype=types.UINT8, layout="HWC", device="gpu" if gpu else "cpu"
        )
        transform = fn.external_source(name="TRANSFORM", ndim=2, dtype=types.FLOAT)
        if gpu:
            # TRANSFORM has pixel centres at integers, this operator at halves. Without a fill value, edge pixels are repeated
            # outside the frame.
            matrix = fn.transforms.combine(
                fn.transforms.translation(offset=(-0.5, -0.5)), transform, fn.transforms.translation(offset=(0.5, 0.5))
            )
            crop = fn.warp_affine(
                image, matrix=matrix, inverse_map=False, size=(CROP_SIZE, CROP_SIZE), dtype=types.FLOAT
            )
        else:
            # On the CPU this operator uses OpenCV, and takes half the time.
            matrix = fn.cat(transform, types.Constant(np.array([[0, 0, 1]], np.float32), device="cpu"), axis=0)
            crop = fn.experimental.warp_perspective(
                image,
                matrix,
                inverse_map=False,
                size=(CROP_SIZE, CROP_SIZE),
                border_mode="replicate",
                pixel_origin="center",
            )
        pipeline.set_outputs(
            fn.crop_mirror_normalize(crop, dtype=types.FLOAT, output_layout="CHW", mean=[0.0], std=[255.0])
        )
    return pipeline


def serialise(repository: Path) -> list[Path]:
    """Write `model.dali` and `model_gpu.dali` of `lipsync_preprocess` and `lipsync_align`.

    Args:
        repository: the Triton model repository.

    Returns:
        The files written.
    """
    written = []
    for name, build in (("lipsync_preprocess", preprocess), ("lipsync_align", align)):
        for file, gpu in ((MODEL_FILE, False), (GPU_MODEL_FILE, True)):
            path = repository / name / "1" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with _without_origins():
                path.write_bytes(build(MODELS[name].max_batch_size, gpu=gpu).serialize())
            written.append(path)
    return written


@contextmanager
def _without_origins() -> Iterator[None]:
    """Leave each operator's source location out of the file: it contains this machine's paths."""
    dali_trace.set_tracing(enabled=False)
    try:
        yield
    finally:
        dali_trace.set_tracing(enabled=True)


def _pipeline(batch_size: int, threads: int) -> Any:
    return Pipeline(batch_size, threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
