"""Models whose weights come to their device for a call only, as accelerate has them."""

import re

import pytest
import torch

from tests.act.lockstep.engine import in_lockstep
from tests.act.lockstep.models import Case, Kind, language_model, with_texts
from tests.act.lockstep.oracle import assert_same, one_after_another
from tests.architectures import tiny

accelerate = pytest.importorskip("accelerate")


def offloaded(family: str) -> Case:
    model = tiny(family)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    return with_texts(model, family)


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "norms"), ("llama", "projections"), ("gpt2", "norms"), ("mixtral", "norms")]
)
def test_offloaded_weights_give_the_same_maps(family: str, kind: Kind) -> None:
    plain = language_model(family)
    sites = plain.sites(kind)[::3]
    wanted = one_after_another(plain.modules, sites, plain.sides)
    case = offloaded(family)
    assert_same(in_lockstep(case.modules, sites, case.sides), wanted)
    assert all(parameter.device.type == "meta" for parameter in case.modules["lm_head"].parameters())


def test_a_site_inside_a_module_whose_own_weights_are_offloaded() -> None:
    plain = language_model("mamba")
    sites = [site for site in plain.sites("projections") if re.search("in_proj", site)]
    assert len(sites) == 2
    wanted = one_after_another(plain.modules, sites, plain.sides)
    case = offloaded("mamba")
    assert_same(in_lockstep(case.modules, sites, case.sides), wanted)
    assert all(parameter.device.type == "meta" for module in case.modules.values() for parameter in module.parameters())


def test_the_model_runs_as_before_after_it_was_left_in_the_middle() -> None:
    case = offloaded("llama")
    sites = case.sites("norms")
    first = one_after_another(case.modules, sites[:1], case.sides)
    assert_same(in_lockstep(case.modules, sites[:3], case.sides)[:1], first)
    assert_same(one_after_another(case.modules, sites[:1], case.sides), first)
