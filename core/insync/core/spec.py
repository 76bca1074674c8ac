"""The typed specification of every model that InSync serves: names, tensors, types, batch limits.

Tests check `model_repository/*/config.pbtxt` against this module; clients, exporters and models import their constants from it.
Only the standard library is imported, so that the thin client can use it too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 6_400  # 0.4 s of audio around one frame
WINDOW_PAST_SAMPLES = 4_480  # 280 ms before the frame's time
WINDOW_FUTURE_SAMPLES = WINDOW_SAMPLES - WINDOW_PAST_SAMPLES  # 120 ms after: the look-ahead
MEL_BANDS = 80
MEL_FRAMES = 40  # one every 10 ms
CROP_SIZE = 256  # pixels, square
SEEN_CHANNELS = 48
# Of SOURCE. The last channel is the logit that the mouth is not occluded; only the alpha uses it.
SOURCE_CHANNELS = SEEN_CHANNELS + 1
REFERENCES = 5  # reference crops of a twin
REFERENCE_CHANNELS = 32  # feature channels of each reference crop
CHANNELS = (
    REFERENCES * REFERENCE_CHANNELS
)  # of REFERENCE and ALIGNED; each channel is warped by its own affine transform
# Features cover only the patch's window of the crop, at a quarter of its resolution: no other pixel is ever generated.
WINDOW_ROWS = (112, 256)  # rows of the crop
WINDOW_COLUMNS = (48, 208)
FEATURE_HEIGHT = (WINDOW_ROWS[1] - WINDOW_ROWS[0]) // 4
FEATURE_WIDTH = (WINDOW_COLUMNS[1] - WINDOW_COLUMNS[0]) // 4
MOUTH = 12  # dimensions of a mouth code
POSE = 32
IDENTITY = 128
SPEECH = 256
STYLE = 128
TWIN_LENGTH = 32  # hexadecimal digits in a twin's id
LIPS = 44  # landmarks of lips and chin, which speech moves
STILL = 29  # landmarks around them, which it does not
MAX_PIXELS = 16_777_216  # per frame, checked before it is decoded
MAX_SIDE = 32_000  # pixels, width and height of a frame: OpenCV cannot sample pictures with a side of 32,767
MAX_FRAME_BYTES = 32 * 2**20  # per encoded frame
MAX_REGISTRATION_FRAMES = 300
MAX_REGISTRATION_BYTES = 256 * 2**20  # of all encoded frames of a registration together
MAX_REGISTRATION_PIXELS = 32 * MAX_PIXELS  # of those frames together: bounds what a server decodes for one registration
# TWIN and STREAM of probes: a built-in grey twin of every server, so that a probe needs no twin store. It has an id's length, but is never a valid id.
CANARY = "canary".ljust(TWIN_LENGTH, "-")


@dataclass(frozen=True)
class Tensor:
    """One named tensor. `shape` is without the batch dimension, -1 is any length. `dtype` is Triton's, without TYPE_."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Model:
    """One served model: its backend, its inputs and outputs in order, and its batch limit."""

    name: str
    backend: str  # "dali", "python", "onnxruntime", "ensemble", or the embedded server's own "fused"
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 8
    steps: tuple[str, ...] = field(default=())  # of an ensemble: the models that it calls, in order


FRAME = Tensor("FRAME", "UINT8", (-1,))
AUDIO = Tensor("AUDIO", "FP32", (WINDOW_SAMPLES,))
TWIN = Tensor("TWIN", "STRING", (1,))
FACE_HINT = Tensor("FACE_HINT", "FP32", (4,), optional=True)
STREAM = Tensor("STREAM", "STRING", (1,), optional=True)
RATE = Tensor("RATE", "FP32", (1,), optional=True)
IMAGE = Tensor("IMAGE", "UINT8", (-1, -1, 3))
MEL = Tensor("MEL", "FP32", (MEL_BANDS, MEL_FRAMES))
TRANSFORM = Tensor("TRANSFORM", "FP32", (2, 3))
CONFIDENCE = Tensor("CONFIDENCE", "FP32", (1,))
FACE = Tensor("FACE", "FP32", (4,))
CROP = Tensor("CROP", "FP32", (3, CROP_SIZE, CROP_SIZE))
REFERENCE = Tensor("REFERENCE", "FP32", (CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH))
IDENTITY_DESCRIPTOR = Tensor("IDENTITY", "FP32", (IDENTITY,))
SOURCE = Tensor("SOURCE", "FP32", (SOURCE_CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH))
POSE_DESCRIPTOR = Tensor("POSE", "FP32", (POSE,))
SPEECH_EMBEDDING = Tensor("SPEECH", "FP32", (SPEECH,))
AFFINE = Tensor("AFFINE", "FP32", (CHANNELS, 4))
STYLE_VECTOR = Tensor("STYLE", "FP32", (STYLE,))
MOUTH_CODE = Tensor("MOUTH", "FP32", (MOUTH,))
# The pixels of the reference crops in the patch's window: the decoder copies skin and teeth from them.
PIXELS = Tensor(
    "PIXELS",
    "UINT8",
    (3 * REFERENCES, WINDOW_ROWS[1] - WINDOW_ROWS[0], WINDOW_COLUMNS[1] - WINDOW_COLUMNS[0]),
)
# Positions of landmarks, in x and y with the window's outer edges at ±1; see `head`.
HEAD = Tensor("HEAD", "FP32", (2 + LIPS + STILL, 2))
NEUTRAL = Tensor("NEUTRAL", "FP32", (LIPS, 2))
PLACES = Tensor("PLACES", "FP32", (LIPS + STILL, 2))
REFERENCE_PLACES = Tensor("REFERENCE_PLACES", "FP32", (REFERENCES, LIPS + STILL, 2))
ALIGNED = Tensor("ALIGNED", "FP32", (CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH))
PATCH = Tensor("PATCH", "UINT8", (CROP_SIZE, CROP_SIZE, 4))
SYNCED = Tensor("SYNCED", "UINT8", (-1,))
CROPS = Tensor("CROPS", "FP32", (REFERENCES, 3, CROP_SIZE, CROP_SIZE))
CODES = Tensor("CODES", "FP32", (REFERENCES, MOUTH))
FRAMES = Tensor("FRAMES", "STRING", (-1,), optional=True)
FORGET = Tensor("FORGET", "STRING", (1,), optional=True)
# Outputs are never strings: if a request asks Triton 2.51 to classify a string output, it divides by zero and dies.
TWIN_DIGITS = Tensor("TWIN", "UINT8", (TWIN_LENGTH,))
REPORT = Tensor("REPORT", "UINT8", (-1,))  # JSON, UTF-8

CHECKED_FRAME = Tensor("CHECKED_FRAME", "UINT8", (-1,))
CHECKED_AUDIO = Tensor("CHECKED_AUDIO", "FP32", (WINDOW_SAMPLES,))
CHECKED_TWIN = Tensor("CHECKED_TWIN", "UINT8", (TWIN_LENGTH,))

_PATCH_STEPS = (
    "lipsync_guard",
    "lipsync_preprocess",
    "lipsync_face",
    "lipsync_align",
    "lipsync_twin_features",
    "lipsync_encoder",
    "lipsync_mixer",
    "lipsync_adaat",
    "lipsync_decoder",
)

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        # Checks that the frame can be decoded and the audio is finite before any costly step: DALI fails a whole batch on one
        # bad sample. TWIN passes through it, so that an ensemble begins with this one step: if two steps are ready at the
        # start and the first fails at once, Triton's gRPC thread and the ensemble scheduler deadlock (seen in 2.51).
        # STREAM and RATE are for the admission of live streams only: see `insync.ensemble.models.admission`.
        Model(
            "lipsync_guard",
            "python",
            (FRAME, AUDIO, TWIN, STREAM, RATE),
            (CHECKED_FRAME, CHECKED_AUDIO, CHECKED_TWIN),
        ),
        Model("lipsync_preprocess", "dali", (FRAME, AUDIO), (IMAGE, MEL)),
        Model("lipsync_face", "python", (IMAGE, FACE_HINT), (TRANSFORM, CONFIDENCE, FACE, HEAD)),
        Model("lipsync_align", "dali", (IMAGE, TRANSFORM), (CROP,)),
        Model(
            "lipsync_twin_features",
            "python",
            (TWIN_DIGITS,),
            (REFERENCE, IDENTITY_DESCRIPTOR, PIXELS, REFERENCE_PLACES, NEUTRAL),
        ),
        Model("lipsync_encoder", "onnxruntime", (CROP, MEL), (SOURCE, POSE_DESCRIPTOR, SPEECH_EMBEDDING)),
        Model(
            "lipsync_mixer",
            "onnxruntime",
            (POSE_DESCRIPTOR, IDENTITY_DESCRIPTOR, SPEECH_EMBEDDING, HEAD, NEUTRAL),
            (AFFINE, STYLE_VECTOR, MOUTH_CODE, PLACES),
        ),
        Model("lipsync_adaat", "python", (REFERENCE, AFFINE), (ALIGNED,)),
        Model(
            "lipsync_decoder",
            "onnxruntime",
            (SOURCE, ALIGNED, STYLE_VECTOR, PIXELS, REFERENCE_PLACES, PLACES),
            (PATCH,),
        ),
        Model(
            "lipsync_composite",
            "python",
            (FRAME, IMAGE, TRANSFORM, PATCH, CONFIDENCE),
            (SYNCED,),
        ),
        Model("lipsync_reference", "onnxruntime", (CROPS, CODES), (REFERENCE, IDENTITY_DESCRIPTOR)),
        # Not batched: one registration is one request. With FORGET (an id) instead of FRAMES, it deletes that twin.
        Model("lipsync_twin", "python", (FRAMES, FORGET), (TWIN_DIGITS, REPORT), max_batch_size=0),
        Model(
            "lipsync_patch",
            "ensemble",
            (FRAME, AUDIO, TWIN, FACE_HINT, STREAM, RATE),
            (PATCH, TRANSFORM, CONFIDENCE, FACE, MOUTH_CODE),
            steps=_PATCH_STEPS,
        ),
        Model(
            "lipsync",
            "ensemble",
            (FRAME, AUDIO, TWIN, FACE_HINT, STREAM, RATE),
            (SYNCED, CONFIDENCE, FACE, MOUTH_CODE),
            steps=(*_PATCH_STEPS, "lipsync_composite"),
        ),
    )
}
ENSEMBLES = tuple(name for name, model in MODELS.items() if model.backend == "ensemble")

# Of the embedded server on a CPU only: the fused pipeline, all steps after the guard in one model; see `insync.ensemble.repository.fused`.
FRAME_MODEL = Model(
    "lipsync_frame",
    "fused",
    (CHECKED_FRAME, CHECKED_AUDIO, CHECKED_TWIN, FACE_HINT),
    (PATCH, SYNCED, TRANSFORM, CONFIDENCE, FACE, MOUTH_CODE),
)
ALL_MODELS = {**MODELS, FRAME_MODEL.name: FRAME_MODEL}
