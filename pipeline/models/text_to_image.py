"""Text-to-image pipelines, through diffusers: a prompt and a seed become an image in a fixed number of steps."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, final

import diffusers
import torch
import transformers
from diffusers.utils import logging
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from PIL.Image import Image
from safetensors import SafetensorError
from torch import nn

from act.capture import discover, hooked
from act.clock import AbstractClock, DenoisingClock
from act.errors import ClockError
from act.hookpoint import Hookpoint, modules_of, select
from act.lockstep.ledger import live_bytes
from act.lockstep.module_state import unchanged
from pipeline.errors import ModelLoadError
from pipeline.models import files
from pipeline.models.components import load_components
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
from pipeline.models.pipeline_folder import PipelineFolder
from pipeline.models.quiet import Silence, quiet
from schemas.job import TextToImage
from schemas.plan import ModelFacts, Site

#: Components whose modules can be hookpoints: the denoiser, under either of its names.
DENOISERS = ("unet.", "transformer.")

_SURVEY_PROMPT = "a photograph"


@final
class TextToImageCheckpoint(AbstractCheckpoint):
    """A diffusers pipeline on disk, with the settings that its images are drawn with.

    Only safetensors weights are read, and no code from the folder is run.

    Args:
        spec: The model section of a job.

    Raises:
        ModelNotFoundError: There is no such model, or it has no weights.
        ModelLoadError: It is no pipeline that can be loaded.
    """

    def __init__(self, spec: TextToImage) -> None:
        self._spec = spec
        self._folder = PipelineFolder(files.find_folder(spec.path, spec.revision))
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._folder.weights  # noqa: B018 - refuses a folder without weights at once

    @cached_property
    def facts(self) -> ModelFacts:
        """Counts come from the headers of the weight files, the fingerprint from all files of the pipeline."""
        counts = self._folder.counts
        num_parameters = sum(size for kind, size in counts.items() if kind.startswith(("F", "BF")))
        others = sum(size for kind, size in counts.items() if not kind.startswith(("F", "BF")))
        return ModelFacts(
            kind="text-to-image",
            fingerprint=self._folder.fingerprint,
            num_parameters=num_parameters,
            weight_bytes=num_parameters * self._dtype.itemsize + others * torch.int64.itemsize,
        )

    @property
    def location(self) -> Path:
        """The folder of the pipeline."""
        return self._folder.root

    @property
    def attention(self) -> str:
        """The attention backend of diffusers, which computes the denoiser's."""
        return str(DIFFUSERS_ATTN_BACKEND)

    def prepare(self) -> None:
        """Does nothing: the folder is loaded as it is."""

    def survey(self, hookpoints: str | tuple[str, ...], rule: PackingRule, device: str) -> Survey:
        """Dry run of one prompt through all steps, on the real weights: a pipeline reads values as it goes.

        A micro-batch is said to need the bytes of the one prompt times its prompts. That is never too little: what
        rows share, such as the position table of a text encoder, is counted for each.

        Raises:
            HookpointNotFoundError: A preset or pattern matches no module of the denoiser.
            SiteVisitError: A hookpoint is never called, or more than once a step.
            ClockError: Steps or guidance halves cannot be told apart.
        """
        model = self.load(device)
        chosen = select(hookpoints, model.modules)
        clock, live = model.clock(()), LiveBytes()
        batch = model.pack([_SURVEY_PROMPT], 0, rule).batches[0]

        def forward() -> None:
            with live:
                model.forward(batch)

        def check(hookpoint: Hookpoint, module: nn.Module, output: Any) -> None:  # noqa: ANN401
            rows = clock.rows(len(hookpoint.of(output)))
            if rows.stop - rows.start > 1:
                raise ClockError(
                    f"{type(model.root).__name__} gives its denoiser {rows.stop} rows for one prompt and does not say "
                    "which of them are unconditional; set 'guidance: 0', or use another pipeline"
                )

        with hooked(model.modules, chosen[:1], check):
            sites = discover(model.modules, chosen, forward, clock)
        return Survey(sites, clock.timesteps, live.peak * model.prompts_per_batch(rule))

    def waiting(self, sites: Sequence[Site], rule: PackingRule, device: str) -> Waiting:
        """Dry run of one prompt, as `survey`; a micro-batch is said to need as much for each of its prompts."""
        model = self.load(device)
        clock, num_prompts = model.clock(()), model.prompts_per_batch(rule)
        batch = model.pack([_SURVEY_PROMPT], 0, rule).batches[0]
        with unchanged(model.modules):
            live = live_bytes(model.modules, sites, lambda: model.forward(batch), clock)
        return Waiting(max(live) * num_prompts, num_prompts)

    def load(self, device: str) -> "TextToImageModel":
        """Loads the pipeline.

        Raises:
            ModelLoadError: diffusers cannot, or the weights lack a tensor.
        """
        with _quiet():
            try:
                pipeline = diffusers.DiffusionPipeline.from_pretrained(
                    self.location, local_files_only=True, **load_components(self._folder, self._dtype)
                ).to(device)
            except ModelLoadError:
                raise
            except (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, AttributeError) as exc:
                raise ModelLoadError(str(self.location), files.first_line(exc)) from exc
            except SafetensorError as exc:
                raise ModelLoadError(str(self.location), f"its weights are damaged ({files.first_line(exc)})") from exc
        return TextToImageModel(pipeline, self._spec)


@final
class TextToImageModel(AbstractModel):
    """A diffusers pipeline in memory.

    Args:
        pipeline: The pipeline, in evaluation mode.
        spec: How it draws.
    """

    def __init__(self, pipeline: Any, spec: TextToImage) -> None:  # noqa: ANN401
        self._pipeline, self._spec = pipeline, spec
        self._parameters = inspect.signature(pipeline.__call__).parameters
        pipeline.set_progress_bar_config(disable=True)

    @property
    def root(self) -> Any:  # noqa: ANN401
        """The pipeline."""
        return self._pipeline

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules of the denoiser: text encoders and the image decoder run outside its steps."""
        return {name: module for name, module in modules_of(self._pipeline).items() if name.startswith(DENOISERS)}

    def clock(self, timesteps: Sequence[float]) -> DenoisingClock:
        """Returns a clock that follows the denoiser."""
        return DenoisingClock(self._pipeline, timesteps)

    def pack(self, prompts: Sequence[str | None], place: int, rule: PackingRule) -> Packed:
        """Fills micro-batches with `prompts_per_batch` prompts in their order.

        A prompt is one row of the store, so it counts as one token; a prompt without words has none and is not run.
        Prompts are cut where the pipeline's own tokenizers cut them, not at `max_tokens`. The noise of an image comes
        from a seed of its own, the spec's plus the prompt's place, so it depends on no other prompt.
        """
        real = [row for row, prompt in enumerate(prompts) if prompt and prompt.strip()]
        size = self.prompts_per_batch(rule)
        batches = []
        for rows in (tuple(real[start : start + size]) for start in range(0, len(real), size)):
            seeds = tuple(self._spec.seed + place + row for row in rows)
            batches.append(MicroBatch(rows, {"prompts": tuple(prompts[row] for row in rows), "seeds": seeds}, None))
        counts = [0] * len(prompts)
        for row in real:
            counts[row] = 1
        return Packed(tuple(batches), tuple(counts), sum(self._is_cut(prompts[row] or "") for row in real))

    def prompts_per_batch(self, rule: PackingRule) -> int:
        """Returns how many prompts go through the pipeline together: as many as have `batch_tokens` image tokens."""
        return max(1, rule.batch_tokens // self._num_image_tokens)

    def mask(self, batch: MicroBatch, rows: Collection[int]) -> MicroBatch:
        """Empties prompts. Their noise stays: the unconditional half of guidance shows that it goes with no words."""
        texts = zip(batch.rows, batch.inputs["prompts"], strict=True)
        prompts = tuple("" if row in rows else text for row, text in texts)
        return dataclasses.replace(batch, inputs={**batch.inputs, "prompts": prompts})

    @torch.inference_mode()
    def forward(self, batch: MicroBatch) -> None:
        """Runs all steps on one micro-batch; no image is decoded."""
        self._draw(batch.inputs["prompts"], batch.inputs["seeds"], "latent")

    def alone(self, clock: AbstractClock) -> Callable[[MicroBatch], None]:
        """Runs a copy of the pipeline with a scheduler of its own; the modules are the same."""
        assert isinstance(clock, DenoisingClock), "it is a denoiser's"
        pipeline = copy.copy(self._pipeline)
        pipeline.scheduler = copy.deepcopy(self._pipeline.scheduler)
        other = TextToImageModel(pipeline, self._spec)

        def run(batch: MicroBatch) -> None:
            with clock.watching(pipeline):
                other.forward(batch)

        return run

    @torch.inference_mode()
    def generate(self, prompt: str, sampling: Sampling) -> Image:
        """Returns the image of a prompt, drawn with the spec's steps, guidance and size, and the seed of `sampling`."""
        image: Image = self._draw([prompt], [sampling.seed], "pil")[0]
        return image

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], output_type: str) -> Any:  # noqa: ANN401
        # Noise is drawn on the CPU whatever the device, one generator a row: neither changes an image.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with _quiet():
            return self._pipeline(
                prompt=list(prompts),
                generator=generators,
                num_inference_steps=self._spec.steps,
                height=self._spec.height,
                width=self._spec.width,
                output_type=output_type,
                **self._guidance(len(prompts)),
            ).images

    def _guidance(self, num_prompts: int) -> dict[str, Any]:
        """Returns the guidance under the name that the pipeline has for it.

        A transformer that was distilled takes its guidance as an input, under `guidance_scale`. One that was not has
        true classifier-free guidance under `true_cfg_scale`, against the empty prompt. A UNet has it under the former.
        """
        guidance = self._spec.guidance
        distilled = bool(getattr(self._denoiser.config, "guidance_embeds", False))
        if "true_cfg_scale" not in self._parameters or distilled:
            return {"guidance_scale": guidance}
        return {"true_cfg_scale": guidance, "negative_prompt": [""] * num_prompts} if guidance > 1 else {}

    @property
    def _denoiser(self) -> Any:  # noqa: ANN401
        return getattr(self._pipeline, "unet", None) or self._pipeline.transformer

    @cached_property
    def _num_image_tokens(self) -> int:
        """Places of the latents that the denoiser sees, at full resolution."""
        scale = self._pipeline.vae_scale_factor
        side = getattr(self._pipeline, "default_sample_size", None) or self._denoiser.config.sample_size
        pixels = (self._spec.height or side * scale) // scale * ((self._spec.width or side * scale) // scale)
        # Some pipelines fold 2 x 2 places into the channels of one token; others leave that to the denoiser's patches.
        folded = max(1, self._denoiser.config.in_channels // self._pipeline.vae.config.latent_channels)
        return max(1, int(pixels // folded // getattr(self._denoiser.config, "patch_size", 1) ** 2))

    def _is_cut(self, prompt: str) -> bool:
        """Whether even the tokenizer that reads furthest does not reach the end of a prompt."""
        limits = [(tokenizer, self._limit(tokenizer)) for tokenizer in self._tokenizers]
        with quiet():
            return all(len(tokenizer(prompt)["input_ids"]) > limit for tokenizer, limit in limits)

    @property
    def _tokenizers(self) -> list[transformers.PreTrainedTokenizerBase]:
        parts = self._pipeline.components.values()
        return [part for part in parts if isinstance(part, transformers.PreTrainedTokenizerBase)]

    def _limit(self, tokenizer: transformers.PreTrainedTokenizerBase) -> int:
        """CLIP's is the tokenizer's; of others a pipeline reads as many tokens as its own parameter says."""
        longest = self._parameters.get("max_sequence_length")
        if longest is None or isinstance(tokenizer, transformers.CLIPTokenizer):
            return int(tokenizer.model_max_length)
        return int(longest.default)


_DIFFUSERS = Silence(logging)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which diffusers and transformers print nothing but errors."""
    with _DIFFUSERS.kept(), quiet():
        yield
