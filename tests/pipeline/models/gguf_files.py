"""A tiny llama as a GGUF file, written from its parts so that one of them can be left out."""

from pathlib import Path

import gguf
import numpy as np

WIDTH, INNER, VOCABULARY = 32, 64, 80


def write_gguf(path: Path, without: str | None = None) -> Path:
    """Writes one block of random float32 weights and a byte-pair tokenizer; returns the path.

    Args:
        path: Where to.
        without: Name of a tensor to leave out.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *(chr(33 + place) for place in range(VOCABULARY - 3)), "ab"])
    writer.add_token_types([3, 3, *[1] * (VOCABULARY - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    for name, shape in _shapes().items():
        if name != without:
            writer.add_tensor(name, draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes() -> dict[str, tuple[int, ...]]:
    square, wide, narrow = (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)
    block: dict[str, tuple[int, ...]] = {f"attn_{part}.weight": square for part in ("q", "k", "v", "output")}
    block |= {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
    block |= {"ffn_up.weight": wide, "ffn_gate.weight": wide, "ffn_down.weight": narrow}
    whole: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH)}
    whole |= {"output_norm.weight": (WIDTH,)}
    return whole | {f"blk.0.{name}": shape for name, shape in block.items()}
