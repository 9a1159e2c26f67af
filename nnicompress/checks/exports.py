"""Trials of the export stage on the untrained model: what can't be exported is found before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from nnicompress.config.resolve import Resolved
from nnicompress.config.schema import RecipeSettings
from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.formats import FORMATS, Format
from nnicompress.pipeline.settings import ExportSettings


def asked_formats(settings: RecipeSettings, resolved: Resolved) -> Iterator[tuple[str, Format]]:
    """Each format that a recipe asks for, and the key under which it does: the stage's own, or the group's."""
    for stage in settings.stages:
        if isinstance(export := stage.settings, ExportSettings):
            own = "formats" in resolved.values["stages"][stage.name]
            for name in export.formats:
                yield (f"stages.{stage.name}.formats" if own else "export.formats"), FORMATS[name]


def as_call(inputs: Any) -> ModelInput:
    """The arguments with which the shipped training step and evaluation call the model on a batch's inputs."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def exports(form: Format, model: nn.Module, inputs: ModelInput) -> None:
    """Raise a UserError with the exporter's reason where `model` can't be exported to this format."""
    try:
        form.attempt(model, inputs)
    except JobError as error:
        raise UserError(f"{form.file} can't be written: {error}; leave this format out, or change the model") from error
