"""From a config to a job: the only place where settings become objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nnicompress.config.blueprint import Blueprint, draw
from nnicompress.config.resolve import resolve
from nnicompress.config.schema import RecipeSettings, validate
from nnicompress.data.datamodule import DataModuleData, is_datamodule
from nnicompress.engines import EvaluatorFactory, metric_name
from nnicompress.errors import ConfigError, InputErrors, UserError
from nnicompress.pipeline.job import Job, StagePlan
from nnicompress.pipeline.smoke import FewBatches
from nnicompress.trace import Traced

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.data.roles import Data


def build_job(cfg: DictConfig, *, smoke: bool = False) -> Job:
    """Build what a run needs; nothing is started, written or set. `smoke`: two batches of everything.

    Raises:
        InputErrors: every wrong key, or every wrong `_target_` and argument.
        ConfigError: the data can't be built.
    """
    resolved = resolve(cfg)
    settings = validate(resolved)
    blueprint = draw(resolved)
    if blueprint.errors:
        raise InputErrors(blueprint.errors)
    data = build_data(blueprint)
    return assemble(settings, blueprint, FewBatches(data) if smoke else data, smoke=smoke)


def assemble(settings: RecipeSettings, blueprint: Blueprint, data: Data, *, smoke: bool = False) -> Job:
    """The job of a recipe that was checked."""
    assert blueprint.model is not None and not blueprint.errors
    evaluators = EvaluatorFactory(settings, blueprint, data)
    stages = tuple(
        StagePlan(stage.name, stage.settings, evaluators.of_stage(stage.name), stage.compressor)
        for stage in settings.stages
    )
    return Job(
        name=settings.head.name,
        build_model=blueprint.model,
        data=data,
        stages=stages,
        run_dir=Path(settings.head.run_dir),
        resolved_config=settings.values,
        seed=settings.head.seed,
        summary=settings.head.summary,
        batch_size=batch_size_of(settings),
        runtime=settings.runtime,
        expected=settings.expected,
        metric=metric_name(settings, blueprint),
        mode=settings.evaluator.mode,
        logging=settings.head.logging,
        smoke=smoke,
        save_every=settings.head.save_every,
    )


def build_data(blueprint: Blueprint) -> Data:
    """The recipe's data object; what its constructor raises becomes one ConfigError."""
    assert blueprint.data is not None
    found = built(blueprint.data, "data")
    data: Data = cast("Data", DataModuleData(found)) if is_datamodule(found) else found
    return data


def built(traced: Traced, key: str, *args: Any) -> Any:
    """`traced.build(*args)`; whatever the user's class raises becomes a ConfigError about `key`."""
    try:
        return traced.build(*args)
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(str(error), key=key) from error
    except Exception as error:  # a constructor of anybody's may raise anything
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{traced.name} raises {type(error).__name__}: {first}", key=key) from error


def batch_size_of(settings: RecipeSettings) -> int:
    """The recipe's batch, at which latency is measured: `data.batch_size`, or 1 where the data have no such setting."""
    size = settings.data.get("batch_size", 1)
    return size if isinstance(size, int) else 1
