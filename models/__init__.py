"""The zoo: the five targets of the NetAug paper, ResNets, nets to be enlarged, and nets for 8x8 digits and scenes."""

from netaug_fx.models.digits import digits_net
from netaug_fx.models.efficientnet import efficientnet_b0
from netaug_fx.models.ghostnet import GhostNet, ghostnet
from netaug_fx.models.mcunet import mcunet
from netaug_fx.models.mobilenet_v2 import mobilenet_v2_035, mobilenet_v2_tiny
from netaug_fx.models.mobilenet_v3 import mobilenet_v3_035
from netaug_fx.models.proxylessnas import proxylessnas_035
from netaug_fx.models.registry import create, names, register
from netaug_fx.models.resnet import resnet18, resnet34, resnet50
from netaug_fx.models.resnet_cifar import ResNetCifar, resnet20, resnet56
from netaug_fx.models.scenes import scenes_net

__all__ = [
    "GhostNet",
    "ResNetCifar",
    "create",
    "digits_net",
    "efficientnet_b0",
    "ghostnet",
    "mcunet",
    "mobilenet_v2_035",
    "mobilenet_v2_tiny",
    "mobilenet_v3_035",
    "names",
    "proxylessnas_035",
    "register",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "scenes_net",
]
