"""GGUF files: dequantised once into a folder of safetensors, which loads five times faster."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.errors import ModelLoadError
from pipeline.models.files import first_line
from pipeline.models.quiet import quiet
from schemas import files


def dequantise(folder: Path, gguf_file: str, to: Path) -> None:
    """Writes the model and the tokenizer of a GGUF file as a folder of float32 safetensors; nothing if it is there.

    The folder appears whole or not at all, so several workers may try at once: the first to finish wins.

    Raises:
        ModelLoadError: transformers cannot read the file, or it lacks a weight.
    """
    if to.is_dir():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.staged_folder(to) as temporary:
            _write(folder, gguf_file, temporary)
    except FileExistsError:
        if not to.is_dir():
            raise
        # Another process was faster, and its copy is the same.


def _write(folder: Path, gguf_file: str, to: Path) -> None:
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bar of tensors heeds no setting
        model, tokenizer = _load(folder, gguf_file)
        _forget_quantisation(model)
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    for path in to.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner reads
        files.sync(path)


def _load(folder: Path, gguf_file: str) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    source: dict[str, Any] = {"gguf_file": gguf_file, "trust_remote_code": False, "local_files_only": True}
    try:
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **source
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    except Exception as exc:
        raise ModelLoadError(str(folder / gguf_file), first_line(exc)) from exc
    for name in sorted(found["missing_keys"]):
        raise ModelLoadError(str(folder / gguf_file), f"its weights lack {name}")
    return model, tokenizer


def _forget_quantisation(model: transformers.PreTrainedModel) -> None:
    """The weights are plain floats now, but transformers refuses to save a model that once was quantised."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
