"""Models from strangers: nothing of theirs runs, and nothing outside their folder is read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelLoadError, ModelNotFoundError
from pipeline.models import open_checkpoint
from pipeline.models.files import check_link, find_folder, require, setting_files, weight_files
from pipeline.models.pipeline_folder import PipelineFolder
from schemas.job import CausalLM
from tests.models import tiny_llama

#: Pickles that lie beside weights in folders of the hub, and what a training leaves behind.
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin", "model.ckpt")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


class Payload:
    """Touches a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A folder that is there once something ran that should not."""
    return tmp_path / "mark"


def loaded(folder, cache):
    checkpoint = open_checkpoint(CausalLM(kind="causal-lm", path=str(folder)), cache)
    assert checkpoint.facts.num_parameters
    return checkpoint.load("cpu")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_pickles(folder, mark):
    for name in PICKLES:
        torch.save(Payload(mark), folder / name)


def test_the_payload_works(tmp_path, mark):
    torch.save(Payload(mark), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert mark.exists()


def test_pickled_weights_alone_are_refused_and_never_run(model, mark, tmp_path):
    add_pickles(model, mark)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="only pickled weights, which are not loaded"):
        loaded(model, tmp_path)
    assert not mark.exists()


def test_pickles_and_code_beside_good_weights_are_never_opened(model, mark, tmp_path):
    add_pickles(model, mark)
    (model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Config: pass\nclass Model: pass\n")
    (model / "conftest.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    edit(model / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    for path in model.glob("*.[bpc]*"):
        if path.name in PICKLES:
            path.unlink()
            os.mkfifo(path)  # whoever opened it would wait for ever
    loaded(model, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_folder_asks_for_is_refused_and_never_run(model, mark, tmp_path, file):
    (model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Any: pass\n")
    wanted = {"AutoConfig": "own.Any", "AutoModelForCausalLM": "own.Any", "AutoTokenizer": ["own.Any", "own.Any"]}
    edit(model / file, auto_map=wanted, model_type="own", tokenizer_class="Any")
    with pytest.raises(ModelLoadError, match="custom code"):
        loaded(model, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("part", [None, "text_config"])
def test_a_kernel_of_the_hub_is_refused(model, name, part):
    kernel = {name: "somebody/kernel"}
    edit(model / "config.json", **({part: kernel} if part else kernel))
    with pytest.raises(ModelLoadError, match=r"asks for code of the hub, .* 'somebody/kernel'"):
        weight_files(model)


def test_a_configuration_of_a_million_layers_is_refused_before_they_are_made(model):
    edit(model / "config.json", num_hidden_layers=10**6)
    with pytest.raises(ModelLoadError, match="wants 1000000 num_hidden_layers, its weights are 21 tensors"):
        weight_files(model)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"cache_implementation": "evil"}'),
        ("tokenizer_config.json", "[" * 100_000),
        ("config.json", "[" * 100_000),
        ("config.json", '{"model_type": "llama", "hidden_size": -4}'),
        ("special_tokens_map.json", "[]"),
    ],
)
def test_odd_settings_are_refused_in_one_sentence(model, tmp_path, file, text):
    (model / file).write_text(text)
    with pytest.raises(ModelLoadError) as caught:
        loaded(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_adapter_would_load_another_model_and_is_refused(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(ModelLoadError, match=r"holds an adapter, which is not loaded; merge it, or remove adapter"):
        weight_files(model)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "../../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "a.bin"],
)
def test_an_index_that_names_anything_but_weights_beside_it_is_refused(model, tmp_path, name):
    shutil.copy(model / "model.safetensors", tmp_path / "outside.safetensors")
    torch.save({}, model / "a.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"names no files beside it that hold the weights; wanted \*.safetensors"):
        weight_files(model)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', "[" * 100_000, "\0"])
def test_an_index_that_is_none_is_refused(model, text):
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"index\.json"):
        weight_files(model)


def test_a_huge_index_is_refused_unread(model, monkeypatch):
    monkeypatch.setattr("pipeline.models.files.MAX_INDEX_BYTES", 10)
    (model / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelLoadError, match="it has 18 bytes; wanted at most 10"):
        weight_files(model)


@pytest.mark.parametrize("name", ["../x.gguf", "sub/../../x.gguf", "/etc/hosts", ".."])
def test_a_gguf_file_outside_the_folder_is_refused(model, tmp_path, name):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (model / "sub").mkdir()
    spec = CausalLM(kind="causal-lm", path=str(model), gguf_file=name)
    with pytest.raises(ModelLoadError, match="leads out of it; wanted the name of a file in it"):
        open_checkpoint(spec, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_a_models_folder_is_refused(model, tmp_path, name):
    (model / name).rename(tmp_path / "secret")
    (model / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ModelLoadError, match=f"{name} cannot be loaded: it is a link that leads out of the model's"):
        loaded(model, tmp_path)


def test_links_within_a_folder_and_to_a_folder_are_followed(model, tmp_path):
    (model / "model.safetensors").rename(model / "weights")
    (model / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(model)
    assert find_folder(str(tmp_path / "link"), None) == model
    loaded(tmp_path / "link", tmp_path)


def test_a_snapshot_of_the_hubs_cache_is_links_into_its_blobs_and_loads(model, tmp_path):
    cache = tmp_path / "hub/models--org--name"
    snapshot = cache / "snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(model.iterdir()):
        shutil.copy(path, cache / f"blobs/{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    loaded(snapshot, tmp_path)
    (snapshot / "vocab.txt").symlink_to("../../../../secret")
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ModelLoadError, match=r"vocab\.txt cannot be loaded: it is a link"):
        setting_files(snapshot)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="it is no regular file"):
        weight_files(tmp_path)
    with pytest.raises(ModelNotFoundError):
        require(tmp_path, "model.safetensors")


@pytest.fixture
def pipeline(tmp_path):
    """The files of a pipeline, as far as they are looked at before anything is loaded."""
    root = tmp_path / "pipeline"
    for part in ("unet", "tokenizer"):
        (root / part).mkdir(parents=True)
    (root / "unet/config.json").write_text("{}")
    (root / "unet/model.safetensors").write_bytes(b"")
    index = {"_class_name": "Any", "unet": ["diffusers", "Any"], "tokenizer": ["transformers", "Any"]}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def test_of_a_pipeline_only_links_within_it_are_followed(pipeline, tmp_path):
    assert PipelineFolder(pipeline).weights
    shutil.move(pipeline / "unet", tmp_path / "elsewhere")
    (pipeline / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="unet cannot be loaded: it is a link"):
        _ = PipelineFolder(pipeline).weights
    with pytest.raises(ModelLoadError):
        check_link(pipeline / "unet")


@pytest.mark.parametrize("library", ["os", "antigravity", "../evil", "", 5])
def test_a_pipeline_has_no_library_of_its_own_imported(pipeline, library):
    edit(pipeline / "model_index.json", tokenizer=[library, "system"])
    with pytest.raises(ModelLoadError, match="for 'tokenizer'; wanted diffusers or transformers"):
        _ = PipelineFolder(pipeline).weights


def test_weights_that_are_there_twice_are_refused(pipeline):
    index = {"weight_map": {"a": "model.safetensors"}}
    (pipeline / "unet/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"both model\.safetensors and an index of its shards; remove one"):
        _ = PipelineFolder(pipeline).weights
