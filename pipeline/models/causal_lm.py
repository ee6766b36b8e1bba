"""Causal language models, through transformers: from a folder, a hub id, or a GGUF file."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from act.capture import discover
from act.clock import AbstractClock, StillClock
from act.errors import ActError
from act.hookpoint import modules_of, select
from act.lockstep.ledger import live_bytes
from act.lockstep.module_state import unchanged
from act.pooling import TokenSpans
from pipeline.errors import ModelLoadError, PromptLengthError, TemplateError
from pipeline.models import files
from pipeline.models.gguf import dequantise
from pipeline.models.interface import (
    AbstractCheckpoint,
    AbstractModel,
    MicroBatch,
    Packed,
    PackingRule,
    Sampling,
    Survey,
    Waiting,
)
from pipeline.models.live_bytes import LiveBytes
from pipeline.models.packing import encode, fill, pad, padded, position_limit, templated
from pipeline.models.quiet import quiet
from schemas.job import CausalLM
from schemas.plan import ModelFacts, Site

T = TypeVar("T")


@final
class CausalLMCheckpoint(AbstractCheckpoint):
    """A causal language model on disk.

    Args:
        spec: The model section of a job.
        cache: Folder for dequantised GGUF files.

    Raises:
        ModelNotFoundError: There is no such model, or it has no weights.
    """

    def __init__(self, spec: CausalLM, cache: Path) -> None:
        self._spec = spec
        self._folder = files.find_folder(spec.path, spec.revision, spec.gguf_file)
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._cache = cache.resolve()
        if spec.gguf_file is None:
            files.require(self._folder, "config.json")
            self._files = [*files.weight_files(self._folder), *files.setting_files(self._folder)]
        else:
            self._files = [files.require(self._folder, spec.gguf_file)]

    @cached_property
    def facts(self) -> ModelFacts:
        """Counts come from the configuration, the fingerprint from the files."""
        _, skeleton = self._skeleton
        tensors = [*skeleton.parameters(), *skeleton.buffers()]
        return ModelFacts(
            kind="causal-lm",
            fingerprint=files.hash_files(self._files, self._folder),
            num_parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
            weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        )

    @property
    def location(self) -> Path:
        """The folder itself, or that of the dequantised copy, which another transformers would write otherwise."""
        if self._spec.gguf_file is None:
            return self._folder
        return self._cache / f"gguf-{self.facts.fingerprint[:32]}-transformers-{transformers.__version__}"

    @property
    def attention(self) -> str:
        """The attention implementation that this version of transformers chooses."""
        return str(self._skeleton[1].config._attn_implementation)  # it has no public name

    def prepare(self) -> None:
        """Dequantises a GGUF file, once for all runs."""
        if self._spec.gguf_file is not None:
            dequantise(self._folder, self._spec.gguf_file, self.location)

    def survey(self, hookpoints: str | tuple[str, ...], rule: PackingRule, device: str) -> Survey:
        """Dry run of a full micro-batch, on fake tensors; on the real weights where the model reads values.

        Raises:
            TemplateError: The tokenizer has no chat template, and the rule wants one.
            PromptLengthError: The rule lets prompts have more tokens than the model has positions.
            HookpointNotFoundError: A preset or pattern matches no module.
        """
        tokenizer = self._tokenizer()
        if rule.template == "chat" and not tokenizer.chat_template:
            raise TemplateError(self._place)
        limit = position_limit(self._skeleton[1].config)
        if limit is not None and rule.max_tokens > limit:
            raise PromptLengthError(self._place, rule.max_tokens, limit)
        return self._dry_run(device, lambda model: _survey(model, hookpoints, rule))

    def waiting(self, sites: Sequence[Site], rule: PackingRule, device: str) -> Waiting:
        """Dry run of a full micro-batch, as `survey`."""
        return self._dry_run(device, lambda model: _waiting(model, sites, rule))

    def _dry_run(self, device: str, look: Callable[[transformers.PreTrainedModel], T]) -> T:
        mode, skeleton = self._skeleton
        try:
            with mode:
                return look(skeleton)
        except ActError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
            self.prepare()
            return look(self._load(device))

    def load(self, device: str) -> "CausalLMModel":
        """Loads the model.

        Raises:
            ModelLoadError: transformers cannot.
        """
        self.prepare()
        return CausalLMModel(self._load(device), self._tokenizer())

    def _load(self, device: str) -> transformers.PreTrainedModel:
        with quiet():
            try:
                model, found = transformers.AutoModelForCausalLM.from_pretrained(
                    self.location,
                    dtype=self._dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
                model = model.to(device)
            except Exception as exc:
                raise ModelLoadError(str(self.location), files.first_line(exc)) from exc
        # transformers goes on with random numbers where a weight is missing or of another shape.
        for name in sorted(found["missing_keys"]):
            raise ModelLoadError(str(self.location), f"its weights lack {name}")
        for name, has, wants in sorted(found["mismatched_keys"]):
            raise ModelLoadError(
                str(self.location), f"{name} has the shape {list(has)}, its config wants {list(wants)}"
            )
        return model.eval().requires_grad_(requires_grad=False)

    @cached_property
    def _skeleton(self) -> tuple[FakeTensorMode, transformers.PreTrainedModel]:
        """The model without its weights, and the mode in which it can be run."""
        mode = FakeTensorMode()
        with quiet(), mode:
            try:
                config = transformers.AutoConfig.from_pretrained(self._folder, trust_remote_code=False, **self._gguf())
                model = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=self._dtype, trust_remote_code=False
                )
            except Exception as exc:
                raise ModelLoadError(self._place, files.first_line(exc)) from exc
        return mode, model.eval().requires_grad_(requires_grad=False)

    def _tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        converted = self.location.is_dir()
        with quiet():
            try:
                return transformers.AutoTokenizer.from_pretrained(
                    self.location if converted else self._folder,
                    trust_remote_code=False,
                    **({} if converted else self._gguf()),
                )
            except Exception as exc:
                raise ModelLoadError(self._place, files.first_line(exc)) from exc

    @property
    def _place(self) -> str:
        """The folder, or the GGUF file, as messages name it."""
        return str(self._folder / self._spec.gguf_file) if self._spec.gguf_file else str(self._folder)

    def _gguf(self) -> dict[str, str]:
        return {} if self._spec.gguf_file is None else {"gguf_file": self._spec.gguf_file}


@final
class CausalLMModel(AbstractModel):
    """A causal language model in memory.

    Args:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    @property
    def root(self) -> Any:  # noqa: ANN401 - as the interface has it
        """The transformers model."""
        return self._model

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """Every module of the model."""
        return modules_of(self._model)

    def clock(self, timesteps: Sequence[float]) -> AbstractClock:
        """A language model has no steps."""
        return StillClock()

    def pack(self, prompts: Sequence[str | None], place: int, rule: PackingRule) -> Packed:
        """Sorts prompts by length and fills micro-batches up to `batch_tokens`, padded on the right."""
        tokens, num_truncated = encode(self._tokenizer, prompts, rule)
        order = sorted((row for row, ids in enumerate(tokens) if ids), key=lambda row: (len(tokens[row]), row))
        lengths = [len(ids) for ids in tokens]
        filled = fill(order, [padded(length, self._limit) for length in lengths], rule.batch_tokens)
        batches = tuple(self._batch(rows, [tokens[row] for row in rows]) for rows in filled)
        return Packed(batches, tuple(lengths), num_truncated)

    def mask(self, batch: MicroBatch, rows: Collection[int]) -> MicroBatch:
        """Fills rows with the padding token: what the model reads at every padded place does it no harm."""
        ids = batch.inputs["input_ids"].clone()
        ids[[place for place, row in enumerate(batch.rows) if row in rows]] = self._pad
        return dataclasses.replace(batch, inputs={**batch.inputs, "input_ids": ids})

    @torch.inference_mode()
    def forward(self, batch: MicroBatch) -> None:
        """Runs the model up to its last hidden state; of the logits only the last column is computed."""
        run(self._model, batch.inputs)

    def alone(self, clock: AbstractClock) -> Callable[[MicroBatch], None]:
        """A language model's forward keeps nothing."""
        return self.forward

    @torch.inference_mode()
    def generate(self, prompt: str, sampling: Sampling) -> str:
        """Returns the continuation of a prompt, without the prompt."""
        text = templated(self._tokenizer, [prompt], sampling.template)[0]
        encoded = self._tokenizer(text, return_tensors="pt", add_special_tokens=sampling.template == "plain")
        encoded = encoded.to(self._model.device)
        chosen: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
            chosen = {"do_sample": True, "temperature": sampling.temperature}
        with quiet():
            output = self._model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=sampling.new_tokens,
                num_beams=1,
                repetition_penalty=sampling.repetition_penalty,
                pad_token_id=self._pad,
                **chosen,
            )
        return str(self._tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))

    @cached_property
    def _limit(self) -> int | None:
        return position_limit(self._model.config)

    @property
    def _pad(self) -> int:
        pad = self._tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def _batch(self, rows: Sequence[int], tokens: Sequence[list[int]]) -> MicroBatch:
        ids, mask = pad(tokens, padded(max(map(len, tokens)), self._limit), self._pad)
        device = self._model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return MicroBatch(tuple(rows), inputs, TokenSpans.from_mask(mask).to(device))


def run(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Runs a forward for its activations: no cache, and logits of the last token only."""
    model(**inputs, use_cache=False, logits_to_keep=1)


def _survey(model: transformers.PreTrainedModel, hookpoints: str | tuple[str, ...], rule: PackingRule) -> Survey:
    modules, inputs, live = modules_of(model), _full_batch(model, rule), LiveBytes()

    def forward() -> None:
        with torch.inference_mode(), live:
            run(model, inputs)

    return Survey(
        discover(modules, select(hookpoints, modules), forward, tokens=inputs["input_ids"].shape[1]), (), live.peak
    )


def _waiting(model: transformers.PreTrainedModel, sites: Sequence[Site], rule: PackingRule) -> Waiting:
    modules, inputs = modules_of(model), _full_batch(model, rule)

    def forward() -> None:
        with torch.inference_mode():
            run(model, inputs)

    with unchanged({"": model, **modules}):
        live = live_bytes(modules, sites, forward)
    return Waiting(max(live), len(inputs["input_ids"]))


def _full_batch(model: transformers.PreTrainedModel, rule: PackingRule) -> dict[str, torch.Tensor]:
    """Returns the largest micro-batch that a rule gives."""
    width = padded(rule.max_tokens, position_limit(model.config))
    shape, device = (max(1, rule.batch_tokens // width), width), next(model.parameters()).device
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.long, device=device),
    }
