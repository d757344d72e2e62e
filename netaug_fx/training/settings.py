"""The sections of a run's settings, one for each concern; `config` puts them together."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from netaug_fx.training.section import Section

Factors = float | list[float]
Ratio = Factors | dict[str, Factors]


class ModelConfig(Section):
    """Which net to train."""

    name: str = Field(default="digits_net", description="Zoo name, `timm:NAME`, or `path/to/file.py:function`.")
    weights: str | None = Field(
        default=None,
        description="Trained weights to start from: a .safetensors file or a .pt state_dict. The classifier is new "
        "where the data has other classes.",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="More keyword arguments for the function that builds the net, such as `dropout: 0.1`.",
    )


class NetAugConfig(Section):
    """How the wider nets around the tiny one are drawn (Cai et al., ICLR 2022, section 3)."""

    ratio: Ratio | None = Field(
        default=3.0,
        description="Widest net over tiny net: a number, a list of factors, or one list for each of `stream` and "
        "`inner`. `null` trains the baseline alone.",
    )
    pin: list[str] = Field(default_factory=list, description="Module paths (globs) that keep their width.")
    divisor: int = Field(default=1, ge=1, description="Widths are rounded to multiples of this.")
    compound: bool = Field(
        default=False,
        description="Factors of inner widths multiply with the present one of the stream that feeds the block.",
    )
    alpha: float = Field(default=1.0, gt=0, description="Weight of each wider net's loss.")
    draws: int = Field(
        default=1, ge=1, le=100, description="Wider nets in each step; where the widest teaches, it is one of them."
    )
    pool: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Draw from this many fixed assignments of widths; unset: from all."
    )
    phase_two: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The last part of the epochs, in which only inner widths are drawn; before it all are.",
    )
    initialise: Literal["keep", "widest"] = Field(
        default="keep",
        description="First weights: `keep` the tiny net's own, or draw all anew for the `widest` net, as in the paper.",
    )
    sort: bool = Field(
        default=False,
        description="As each epoch of phase one starts, move the most important inner channels into the tiny net.",
    )

    @field_validator("ratio")
    @classmethod
    def _ratio_can_be_used(cls, ratio: Ratio | None) -> Ratio | None:
        if ratio is None:
            return None
        strangers = set(ratio) - {"stream", "inner"} if isinstance(ratio, dict) else set()
        if strangers:
            raise ValueError(f"kinds of groups are 'stream' and 'inner', found {', '.join(map(repr, strangers))}")
        for factors in ratio.values() if isinstance(ratio, dict) else [ratio]:
            if isinstance(factors, list) and not factors:
                raise ValueError("a list of factors must hold at least one number")
            for factor in factors if isinstance(factors, list) else [factors]:
                if not math.isfinite(factor) or factor < 1:
                    raise ValueError(f"every factor must be a finite number of at least 1, found {factor}")
        return ratio


class DistillConfig(Section):
    """Who else teaches the tiny net: another net that is trained already, or the wider nets around it."""

    teacher: str | None = Field(
        default=None, description="A trained net, named as `model.name`; teaches the tiny net in all arms."
    )
    teacher_weights: str | None = Field(
        default=None, description="Its weights: a .safetensors file, or a .pt state_dict."
    )
    teacher_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More arguments for the function that builds it, such as `pretrained: true`."
    )
    in_place: bool | None = Field(
        default=None,
        description="The widest net takes the place of one drawn net, and its output teaches the tiny net. Unset: "
        "where no `teacher` does. Without it the arm netaug is the paper's, and takes less time.",
    )
    weight: float = Field(default=1.0, gt=0, description="Weight of a teacher's term beside the loss on the labels.")
    temperature: float = Field(default=1.0, gt=0, description="Softens the outputs of teacher and tiny net alike.")
    project: bool = Field(
        default=False, description="Where gradients conflict, take the tiny net's direction out of the wider nets'."
    )

    @property
    def wider_nets_teach(self) -> bool:
        """Whether they do in the arm netaug: as was chosen, else where no other net teaches."""
        return self.teacher is None if self.in_place is None else self.in_place

    @model_validator(mode="after")
    def _weights_have_a_net(self) -> DistillConfig:
        if self.teacher is None and (self.teacher_weights is not None or self.teacher_kwargs):
            raise ValueError("teacher_weights and teacher_kwargs need a teacher (--teacher)")
        return self


class OptimConfig(Section):
    """SGD with Nesterov momentum; warm-up, then cosine, by iteration. Biases and norms have no weight decay."""

    epochs: int = Field(default=25, ge=1, description="Passes over the training images, for each arm.")
    lr: float = Field(default=0.1, gt=0, description="Highest learning rate, reached after the warm-up.")
    lr_images: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="`lr` is meant for steps of this many images and grows or shrinks in proportion. Unset: any.",
    )
    warmup_epochs: float = Field(default=2.0, ge=0, description="Epochs over which the learning rate rises from zero.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum; 0 is plain SGD.")
    weight_decay: float = Field(default=4e-5, ge=0, description="Decay of the weights, but not of biases and norms.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Part of each target spread over all classes.")
    mixup: float = Field(
        default=0.0,
        ge=0,
        description="Each image is mixed with another of its batch, by shares from Beta(mixup, mixup); 0.2 is usual, 0 "
        "mixes none.",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Batches whose gradients are added up for one step, with the same wider nets; what is left of an "
        "epoch after the last full step is not used.",
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Gradients are scaled down to this L2 norm; unset: never."
    )
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of a running average of the weights (0.9999), which is then validated and delivered.",
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="Mixed precision of forward passes; fp16 needs a GPU."
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_false_in_yaml(cls, precision: Any) -> Any:
        return "no" if precision is False else precision

    channels_last: bool = Field(
        default=False,
        description="Keep the weights of convolutions in channels-last memory order. On a CPU nets of depthwise "
        "convolutions train up to twice as fast, others may be slower.",
    )


class SplitConfig(Section):
    """Knowledge Evolution (Taha et al., CVPR 2021): what is kept from generation to generation."""

    keep: float = Field(default=0.5, gt=0, le=1, description="Part of the net that is fit, and handed on.")
    method: Literal["kels", "wels"] = Field(
        default="kels",
        description="Split by channels (`kels`), which leaves a slim net that can be cut out, or weight by weight "
        "(`wels`).",
    )
    pin: list[str] = Field(default_factory=list, description="Module paths (globs) that are fit as a whole.")
    generations: int = Field(default=5, ge=1, description="How often the dense net is trained.")
    reset_norm: bool = Field(default=False, description="Reset the norms of the reset part, too.")
    loss: Literal["labels", "class_wise", "triplet"] = Field(
        default="labels",
        description="What counts beside the loss on the labels: nothing, outputs for other images of a class "
        "(class-wise self-distillation), or distances between features (triplets).",
    )
    loss_weight: float = Field(default=1.0, gt=0, description="Weight of that term.")
    temperature: float = Field(default=4.0, gt=0, description="Softens outputs of class-wise self-distillation.")
    margin: float = Field(default=0.2, gt=0, description="How much farther images of other classes are to be.")
    control: bool = Field(
        default=True, description="Also train the net once for as many epochs as all generations have together."
    )


class SearchConfig(Section):
    """Greedy Network Enlarging (Liu et al., arXiv 2108.00177): how far the net grows, and how candidates are judged."""

    times: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="Multiply-adds at the end, as a multiple of the net's own. Unset: 4, or `macs`."
    )
    macs: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Multiply-adds of one image at the end, instead of `times`."
    )
    step: float = Field(default=0.5, gt=0, description="By about how much multiply-adds grow in a step: 0.5 for half.")
    dims: list[Literal["width", "depth", "resolution"]] = Field(
        default=["width", "depth", "resolution"],
        min_length=1,
        description="What may be enlarged: `width` and `depth` of each stage, `resolution` of the images. What blocks "
        "and pixels leave to a step's target is made up by width all the same.",
    )
    pin: list[str] = Field(default_factory=list, description="Module paths (globs) whose widths stay.")
    epochs: int = Field(default=8, ge=1, description="Passes over the training images for each candidate.")
    hold_out: float = Field(
        default=0.2, gt=0, lt=1, description="Part of each class's training images that candidates are judged by."
    )
    inherit: bool = Field(
        default=False,
        description="Candidates go on from the weights that the step before left, instead of from untrained ones.",
    )
    preserve: bool = Field(
        default=False, description="New blocks start as identities and new channels as copies, instead of fresh."
    )
    pixels: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="The side of the images grows by multiples of this. Unset: 8 at 224 pixels, 1 below 56.",
    )
    journal: str | None = Field(
        default=None, description="File that keeps every candidate's score. Unset: `journal.jsonl` in the run folder."
    )
    compare: bool = Field(
        default=True,
        description="Also scale the net by width alone and by compound scaling to the same multiply-adds, and train "
        "both likewise.",
    )

    @model_validator(mode="after")
    def _one_budget(self) -> SearchConfig:
        if self.times is not None and self.macs is not None:
            raise ValueError(
                "enlarge.times (--times) and enlarge.macs (--macs) are two ways to say one thing; give one"
            )
        if len(set(self.dims)) != len(self.dims):
            raise ValueError(f"enlarge.dims (--dims) names one thing twice: {', '.join(self.dims)}")
        return self

    def budget(self, base: int) -> int:
        """Multiply-adds at the end, for a net that has ``base``."""
        return self.macs if self.macs is not None else round((self.times or 4.0) * base)

    def pixels_at(self, side: int) -> int:
        """The step in which images grow."""
        return self.pixels or max(1, side // 28)


class KeepConfig(Section):
    """What is written while a run goes on."""

    minutes: float = Field(
        default=10.0, ge=0, description="A checkpoint is written at each epoch's end, and this often in between."
    )


class DeliverConfig(KeepConfig):
    """What is written while a run goes on, and which weights it delivers."""

    deliver: Literal["last", "best"] = Field(
        default="last",
        description="Deliver the last weights, or those of the epoch with the best validation accuracy (which "
        "flatters: they were chosen by the images they are judged on).",
    )


class TrackingConfig(Section):
    """Where else the metrics go, beside `metrics.csv`."""

    tensorboard: bool = Field(default=False, description="Also write them for TensorBoard, into the run folder.")
    wandb: str | None = Field(default=None, description="Also send them to this project on Weights & Biases.")
