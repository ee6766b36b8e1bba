import multiprocessing
import pickle
import resource
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import BatchMemoryError
from pipeline.forward import BatchSink, Forward
from pipeline.models import MicroBatch, Packed, PackingRule, causal_lm, packing
from pipeline.plan import make_plan
from pipeline.store.activations import Block
from schemas.job import read_job
from schemas.plan import Unit
from schemas.receipt import Quarantined, Split
from schemas.treatment import PACKING, Probe, Treatment
from tests.jobs.runs import write_spec
from tests.models import tiny_llama
from tests.pipelines import tiny_sdxl

#: Place of the unit in its side.
START = 100

PROMPTS = ["the sea", "a song about rain", "", "rain", "y " * 29, "a", "ships rose", "x " * 30, "b"]

#: Rows of `PROMPTS` in each micro-batch of the llama: sorted by length, at most 128 padded tokens.
BATCHES = [(5, 8, 0, 3, 1, 6), (4, 7)]

Tokens = dict[int, torch.Tensor]


def _forward(folder: Path, model: dict[str, Any], **changes: Any) -> Forward:
    spec = write_spec(folder, model, **changes)
    return Forward(make_plan(read_job(spec), spec.parent, folder / "cache")[0])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def forwards(llama: Path) -> dict[str, Forward]:
    """A forward of the llama by pooling."""
    model, compute = {"kind": "causal-lm", "path": str(llama)}, {"batch_tokens": 128, "max_tokens": 64}
    return {kind: _forward(llama.parent / kind, model, pooling=kind, compute=compute) for kind in ("mean", "all")}


@pytest.fixture
def mean(forwards: dict[str, Forward]) -> Forward:
    return forwards["mean"]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Forward:
    folder = tmp_path_factory.mktemp("sdxl")
    tiny_sdxl(folder / "model")
    model = {"kind": "text-to-image", "path": str(folder / "model"), "steps": 1, "height": 16, "width": 16}
    hookpoints = [r"unet\.mid_block", r"unet\.down_blocks\.0\.resnets\.0"]
    return _forward(folder, model | {"guidance": 4.0}, hookpoints=hookpoints, compute={"batch_tokens": 192})


def _run(
    forward: Forward,
    treatment: Treatment = Treatment(),  # noqa: B008 - a frozen value
    on_batch: BatchSink | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> tuple[Packed, Block, Tokens]:
    """What a run gives, and the tokens of each site `[tokens, neurons]`, in the order in which they came."""
    tokens: dict[int, list[torch.Tensor]] = {}

    def take(site: int, values: torch.Tensor) -> None:
        assert len(values), "a sink is not called for nothing"
        tokens.setdefault(site, []).append(values)

    packed, block = forward.run(prompts, START, take, treatment, on_batch)
    return packed, block.copy(), {site: torch.cat(parts) for site, parts in tokens.items()}


def _masking(*rows: int) -> Treatment:
    return Treatment(masked=_poison(*rows))


def _poison(*rows: int) -> tuple[Quarantined, ...]:
    return tuple(Quarantined(START + row, "killed its worker") for row in rows)


@contextmanager
def _hook(forward: Forward, hook: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """A context in which `hook` takes the token ids of each forward, `[batch, tokens]`."""

    def look(module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        hook(args[0])

    with forward.model.modules["model.embed_tokens"].register_forward_hook(look):
        yield


def _raising(error: Exception, at: int) -> Callable[[torch.Tensor], None]:
    """A hook that raises at the n-th micro-batch."""
    count = iter(range(at + 1))

    def hook(ids: torch.Tensor) -> None:
        if next(count) == at:
            raise error

    return hook


# Masking


@pytest.mark.parametrize("pooling", ["mean", "all"])
@pytest.mark.parametrize("rows", [(4,), (0, 2, 8), (7, 4), tuple(range(len(PROMPTS)))])
def test_masked_prompts_leave_nothing_and_the_others_keep_their_bits(
    forwards: dict[str, Forward], pooling: str, rows: tuple[int, ...]
):
    packed, block, tokens = _run(forwards[pooling])
    assert [batch.rows for batch in packed.batches] == BATCHES
    masked, without, rest = _run(forwards[pooling], _masking(*rows))
    assert masked.num_tokens == packed.num_tokens
    samples = block.reshape(len(PROMPTS), -1, block.shape[1])
    samples[list(rows)] = np.nan
    assert without.tobytes() == samples.tobytes()
    real = np.concatenate([[row not in rows] * packed.num_tokens[row] for batch in BATCHES for row in batch])
    for site, values in tokens.items():
        assert torch.equal(rest.get(site, values[:0]), values[real.astype(bool)])


def test_masked_images_leave_nothing_and_the_others_keep_their_bits(sdxl: Forward):
    prompts = ["a cat", "two dogs", "the sea", "", "b"]
    packed, block, tokens = _run(sdxl, prompts=prompts)
    assert [batch.rows for batch in packed.batches] == [(0, 1, 2), (4,)]
    _, without, rest = _run(sdxl, _masking(1, 4), prompts=prompts)
    assert np.isnan(without[[1, 3, 4]]).all()
    assert without[[0, 2]].tobytes() == block[[0, 2]].tobytes()
    for site, values in tokens.items():
        pixels = values.reshape(4, -1, values.shape[1])
        assert len(pixels[0]) in (16, 64)
        assert torch.equal(rest[site], pixels[[0, 2]].flatten(0, 1))


def test_the_model_never_sees_a_masked_prompt(mean: Forward):
    seen: list[torch.Tensor] = []
    for treatment in (Treatment(), _masking(4)):
        with _hook(mean, seen.append):
            mean.run(PROMPTS, START, None, treatment)
    plain, masked = seen[1], seen[3]
    assert plain.shape == masked.shape
    assert torch.equal(plain[1], masked[1])
    assert set(masked[0].tolist()) == {0} != set(plain[0].tolist())


def test_a_prompt_that_does_not_survive_packing_is_left_out_of_it(mean: Forward, monkeypatch: pytest.MonkeyPatch):
    read = _reading_prompts(monkeypatch)
    treatment = Treatment(masked=(Quarantined(START + 7, f"{PACKING} it killed its worker"),))
    packed, block = mean.run(PROMPTS, START, None, treatment)
    assert read == [[*PROMPTS[:7], None, PROMPTS[8]]]
    assert packed.num_tokens[7] == 0
    assert np.isnan(block).all(axis=1).tolist() == [row in (2, 7) for row in range(len(PROMPTS))]


def _reading_prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    """The prompts that were given to the tokenizer, from now on."""
    read: list[list[str | None]] = []
    encode = packing.encode

    def noting(tokenizer: Any, prompts: Sequence[str | None], rule: Any) -> Any:
        read.append(list(prompts))
        return encode(tokenizer, prompts, rule)

    monkeypatch.setattr(causal_lm, "encode", noting)
    return read


# Pieces


@pytest.mark.parametrize(
    ("treatment", "pieces"),
    [
        (Treatment(), [(0, BATCHES[0]), (1, BATCHES[1])]),
        (Treatment(splits=(Split(1, 2),)), [(0, BATCHES[0]), (1, (4,)), (1, (7,))]),
        (Treatment(splits=(Split(0, 4),)), [(0, (5,)), (0, (8, 0)), (0, (3,)), (0, (1, 6)), (1, BATCHES[1])]),
        (Treatment(parts=2, splits=(Split(0, 3),)), [(0, (5, 8)), (0, (0, 3)), (0, (1, 6)), (1, (4,)), (1, (7,))]),
        (Treatment(parts=99), [(batch, (row,)) for batch, rows in enumerate(BATCHES) for row in rows]),
    ],
)
def test_a_split_micro_batch_runs_in_pieces_and_keeps_its_bits(
    mean: Forward, treatment: Treatment, pieces: list[tuple[int, tuple[int, ...]]]
):
    # True on a CPU in float32 where a piece has 16 tokens or more, as it has unless the model lacks the positions.
    seen: list[tuple[int | None, tuple[int, ...]]] = []
    _, block, tokens = _run(mean)
    _, split, rest = _run(mean, treatment, lambda batch, rows: seen.append((batch, rows)))
    assert seen == [(None, tuple(range(len(PROMPTS)))), *pieces]
    assert split.tobytes() == block.tobytes()
    assert all(torch.equal(rest[site], tokens[site]) for site in tokens)


def test_a_split_batch_of_images_repeats_its_bits_and_is_the_whole_one_up_to_rounding(sdxl: Forward):
    prompts = ["a cat", "two dogs", "the sea"]
    _, whole, _ = _run(sdxl, prompts=prompts)
    _, split, _ = _run(sdxl, Treatment(parts=3), prompts=prompts)
    _, again, _ = _run(sdxl, Treatment(splits=(Split(0, 3),)), prompts=prompts)
    assert split.tobytes() == again.tobytes()
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)


def test_what_is_about_to_happen_is_told_before_it_does(mean: Forward):
    seen: list[tuple[int | None, tuple[int, ...]]] = []
    with _hook(mean, _raising(KeyError("poison"), 1)), pytest.raises(KeyError):
        _run(mean, Treatment(parts=2), lambda batch, rows: seen.append((batch, rows)))
    assert seen[-1] == (0, (3, 1, 6))
    assert len(seen) == 3


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …"),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_want_of_memory_names_the_micro_batch_and_the_model_goes_on(mean: Forward, error: Exception):
    _, block, _ = _run(mean)
    with _hook(mean, _raising(error, 2)), pytest.raises(BatchMemoryError) as caught:
        _run(mean, Treatment(splits=(Split(0, 2),)))
    assert (caught.value.batch, caught.value.rows) == (1, BATCHES[1])
    assert caught.value.__cause__ is error
    assert _run(mean)[1].tobytes() == block.tobytes()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), RuntimeError("can't allocate"), ValueError("memory")],
)
def test_any_other_error_passes_as_it_is(mean: Forward, error: Exception):
    with _hook(mean, _raising(error, 0)), pytest.raises(type(error)) as caught:
        _run(mean)
    assert caught.value is error
    assert not any(module._forward_hooks for module in mean.model.modules.values())


def test_what_a_failed_micro_batch_held_is_free_before_it_is_told(mean: Forward):
    held: list[weakref.ref[torch.Tensor]] = []

    def hook(ids: torch.Tensor) -> None:
        large = torch.empty(1000)
        held.append(weakref.ref(large))
        raise MemoryError

    with _hook(mean, hook), pytest.raises(BatchMemoryError) as caught:
        _run(mean)
    assert caught.value.rows == BATCHES[0]
    assert held[0]() is None


def _in_child(work: Callable[[], object]) -> object:
    """What some work returns in a forked process, which may limit itself."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(work()))
    child.start()
    sender.close()  # so that a child that dies is heard
    try:
        assert receiver.poll(30), "the child hangs"
        return receiver.recv()
    finally:
        child.kill()
        child.join()


def test_an_allocation_that_really_fails_is_told_and_passes_in_pieces(mean: Forward):
    _, block, _ = _run(mean)

    def work(treatment: Treatment) -> object:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (320 << 20), resource.RLIM_INFINITY))
        # 64 MiB a prompt, of which none is touched: four fit at most.
        with _hook(mean, lambda ids: torch.empty(len(ids) << 26, dtype=torch.uint8)):
            try:
                return _run(mean, treatment)[1].tobytes()
            except BatchMemoryError as exc:
                return exc, str(exc.__cause__)

    found = _in_child(lambda: work(Treatment()))
    assert isinstance(found, tuple)
    assert (found[0].batch, found[0].rows) == (0, BATCHES[0])
    assert "DefaultCPUAllocator" in found[1]
    assert _in_child(lambda: work(Treatment(splits=(Split(0, 2),)))) == block.tobytes()


def test_the_error_says_how_many_prompts_ran_together_and_survives_pickling():
    error = BatchMemoryError(3, (1, 2))
    assert "micro-batch 3 of a unit finds no memory for its 2 prompts" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.batch, copy.rows, str(copy)) == (BatchMemoryError, 3, (1, 2), str(error))


# Probes


def _probe(batch: int | None, rows: tuple[int, ...], masked: tuple[int, ...] = (), parts: int = 1) -> Probe:
    return Probe(Unit("source", 0, START, START + len(PROMPTS)), batch, rows, _poison(*masked), parts)


@pytest.mark.parametrize(
    ("probe", "real"),
    [
        (_probe(0, (0, 6)), [(0, 6)]),
        (_probe(0, (0, 6), parts=2), [(0,), (6,)]),
        (_probe(0, (0, 6), masked=(6, 7)), [(0,)]),
    ],
)
def test_a_probe_runs_one_micro_batch_with_only_some_prompts_real(
    mean: Forward, probe: Probe, real: list[tuple[int, ...]]
):
    assert probe.batch is not None
    batch = mean.model.pack(PROMPTS, START, PackingRule("plain", 64, 128)).batches[probe.batch]
    seen: list[torch.Tensor] = []
    with _hook(mean, seen.append):
        mean.probe(PROMPTS, START, probe)
    assert [len(ids) for ids in seen] == [len(batch.rows) // probe.parts] * probe.parts
    for ids, piece, kept in zip(seen, batch.split(probe.parts), real, strict=True):
        assert torch.equal(ids, _masked_by_hand(piece, kept))


def _masked_by_hand(piece: MicroBatch, kept: tuple[int, ...]) -> torch.Tensor:
    """Token ids of a piece, 0 in all rows but those that are kept."""
    real = torch.tensor([[row in kept] for row in piece.rows])
    ids: torch.Tensor = piece.inputs["input_ids"]
    return torch.where(real, ids, 0)


def test_a_probe_of_packing_packs_only_some_prompts_and_runs_nothing(mean: Forward, monkeypatch: pytest.MonkeyPatch):
    read = _reading_prompts(monkeypatch)
    with _hook(mean, _raising(KeyError("ran"), 0)):
        mean.probe(PROMPTS, START, _probe(None, (0, 3, 7), masked=(7,)))
    assert read == [[prompt if row in (0, 3) else None for row, prompt in enumerate(PROMPTS)]]


def test_a_probe_tells_want_of_memory_too(mean: Forward):
    with _hook(mean, _raising(MemoryError(), 1)), pytest.raises(BatchMemoryError) as caught:
        mean.probe(PROMPTS, START, _probe(0, (5,), parts=3))
    assert (caught.value.batch, caught.value.rows) == (0, (0, 3))
