"""GGUF files: dequantised once into a folder of safetensors, which loads five times faster."""

import contextlib
import io
import os
import secrets
import shutil
from pathlib import Path

import torch
import transformers

from pipeline.models.quiet import quiet
from schemas import files


def dequantise(folder: Path, gguf_file: str, to: Path) -> None:
    """Writes the model and the tokenizer of a GGUF file as a folder of float32 safetensors; nothing if it is there.

    The folder appears whole or not at all, so several workers may try at once.
    """
    if to.is_dir():
        return
    temporary = to.with_name(f".{to.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    temporary.mkdir(parents=True)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bar of tensors heeds no setting
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=gguf_file, dtype=torch.float32, trust_remote_code=False
            )
            _forget_quantisation(model)
            model.save_pretrained(temporary)
            transformers.AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file).save_pretrained(temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner reads
            files.sync(path)
        if not to.is_dir():
            os.replace(temporary, to)
        files.sync(to.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _forget_quantisation(model: transformers.PreTrainedModel) -> None:
    """The weights are plain floats now, but transformers refuses to save a model that once was quantised."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
