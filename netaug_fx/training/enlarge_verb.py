"""The verb ``enlarge``. What is heavy is imported when it runs."""

from __future__ import annotations

from typing import Annotated

from netaug_fx.training.config import EnlargeConfig, load_config
from netaug_fx.training.options import (
    BatchSize,
    ConfigFile,
    Data,
    DataDir,
    Epochs,
    ImageSizeSetting,
    ModelSetting,
    Opset,
    Out,
    Rate,
    Resume,
    Seed,
    Weights,
    all_settings,
    setting,
)
from netaug_fx.training.training_verbs import exit_by_verification, given, resume_alone


def enlarge(
    model: ModelSetting = None,
    data: Data = None,
    data_dir: DataDir = None,
    image_size: ImageSizeSetting = None,
    times: Annotated[float | None, setting("--times", "enlarge.times")] = None,
    macs: Annotated[int | None, setting("--macs", "enlarge.macs")] = None,
    step: Annotated[float | None, setting("--step", "enlarge.step")] = None,
    dims: Annotated[str | None, setting("--dims", "enlarge.dims", metavar="DIM[,DIM]")] = None,
    trial_epochs: Annotated[int | None, setting("--trial-epochs", "enlarge.epochs")] = None,
    inherit: Annotated[bool | None, setting("--inherit/--scratch", "enlarge.inherit")] = None,
    compare: Annotated[bool | None, setting("--compare/--no-compare", "enlarge.compare")] = None,
    journal: Annotated[str | None, setting("--journal", "enlarge.journal", metavar="FILE")] = None,
    jobs: Annotated[int | None, setting("--jobs", "jobs")] = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    seed: Seed = None,
    opset: Opset = None,
    config: ConfigFile = None,
    out: Out = None,
    resume: Resume = None,
    settings: Annotated[bool, all_settings(EnlargeConfig)] = False,
) -> None:
    """Grow a net to a budget of multiply-adds, step by step, by what helps most (Greedy Network Enlarging).

    Without options: a very small net on scikit-learn's handwritten digits to four times its multiply-adds, in minutes.
    """
    overrides = given(locals())
    from netaug_fx.training import enlarge_run

    if resume is None:
        folder = enlarge_run.start(load_config(EnlargeConfig, config, overrides), out)
    else:
        resume_alone(overrides, config, out)
        folder = enlarge_run.resume(resume)
    exit_by_verification(folder)
