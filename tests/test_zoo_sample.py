"""A fixed sample of other people's nets, held against everything that is claimed of any net.

The whole zoos are run by ``python -m benchmarks.coverage``; here are one small net of half of timm's families, nets of
torchvision's four packages, and eight model types of transformers. Three are exported to ONNX, which takes longer than
all else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.coverage_check import check_net
from benchmarks.coverage_table import why_not
from benchmarks.zoos import timm_nets, torchvision_nets, transformers_nets

TIMM = """
    test_byobnet poolformerv2_s12 test_coatnet test_convnext cpubone_nano cs3darknet_focus_s cspnext_tiny test_vit
    deit_tiny_distilled_patch16_224 dla46x_c test_nfnet ese_vovnet19b_slim_dw test_resnet edgenext_xx_small
    test_efficientnet test_efficientnet_evos efficientvim_m1 efficientvit_b0 fasternet_t0 fastvit_t8
    mobilenetv3_small_050 ghostnet_050 mixer_s32_224 hgnetv2_b0 iformer_t inception_next_atto lcnetv2_small
    legacy_seresnet18 legacy_xception lowformer_e1 test_mambaout pvt_v2_b0 regnetx_002 repghostnet_050 repvit_m1
    resnetv2_18 rexnet_100 shvit_s1 starnet_s050 swiftformer_xs test_vit_relpos
""".split()  # noqa: SIM905
TORCHVISION = """
    squeezenet1_1 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 resnet18 regnet_y_400mf
    densenet121 googlenet lraspp_mobilenet_v3_large raft_small ssdlite320_mobilenet_v3_large/backbone+head
    fasterrcnn_mobilenet_v3_large_fpn/backbone retinanet_resnet50_fpn/head
""".split()  # noqa: SIM905
TRANSFORMERS = """
    SwinForImageClassification MobileViTV2ForImageClassification SegformerForSemanticSegmentation BertModel
    GPT2LMHeadModel LlamaForCausalLM T5ForConditionalGeneration WhisperForConditionalGeneration
""".split()  # noqa: SIM905
EXPORTED = {"mobilenetv3_small_050", "shufflenet_v2_x0_5", "LlamaForCausalLM"}


def assert_counts(zoo: object, name: str, folder: Path) -> None:
    row = check_net(zoo.net(name), folder if name in EXPORTED else None)  # type: ignore[attr-defined]
    assert row["counted"], why_not(row)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, tmp_path: Path) -> None:
    assert_counts(timm_nets, name, tmp_path)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, tmp_path: Path) -> None:
    assert_counts(torchvision_nets, name, tmp_path)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str, tmp_path: Path) -> None:
    assert_counts(transformers_nets, name, tmp_path)


def test_the_sample_is_as_large_as_it_says() -> None:
    families = {timm_nets.net(name).family for name in TIMM}
    assert len(families) >= 40
    assert len(TORCHVISION) == 15
    assert len({transformers_nets.net(name).family for name in TRANSFORMERS}) == 8
