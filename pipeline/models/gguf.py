"""GGUF files: dequantised once into a folder of safetensors, which loads five times faster."""

import contextlib
import errno
import io
import os
import secrets
import shutil
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
    temporary = to.with_name(f".{to.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    temporary.mkdir(parents=True)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bar of tensors heeds no setting
            model, tokenizer = _load(folder, gguf_file)
            _forget_quantisation(model)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner reads
            files.sync(path)
        _rename(temporary, to)
        files.sync(to.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _rename(temporary: Path, to: Path) -> None:
    try:
        os.replace(temporary, to)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another process was faster, and its copy is the same.


def _forget_quantisation(model: transformers.PreTrainedModel) -> None:
    """The weights are plain floats now, but transformers refuses to save a model that once was quantised."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
