"""Any model of torchvision, timm or transformers by its name there; each library is imported when it is asked for.

Nothing is downloaded unless the settings say so (`weights` of torchvision, `pretrained: true` of timm, a hub name as
`pretrained` of transformers).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from nnicompress.data.installed import local_folder
from nnicompress.errors import ConfigError, UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

INSTALL = {
    "torchvision": "pip install 'nnicompress[vision]'",
    "timm": "pip install 'nnicompress[vision]'",
    "transformers": "pip install transformers",
}


_CONFIG = "model.config"
_PRETRAINED = "model.pretrained"
"""The keys under which a recipe holds a configuration of transformers and saved weights."""


def library(name: str) -> ModuleType:
    """Import a library; a UserError says how to install it, or that it does not fit this torch."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != name:
            raise UserError(f"{name} is installed, but it needs {error.name}: pip install {error.name}") from error
        raise UserError(f"this model needs {name}, which is not installed: {INSTALL[name]}") from error
    except (ImportError, RuntimeError) as error:
        # A torchvision for another torch fails with "operator torchvision::nms does not exist", a RuntimeError.
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is installed and cannot be imported ({reason}); does it fit this torch?") from error


def torchvision_model(name: str, **settings: Any) -> nn.Module:
    """`torchvision.models.get_model(name, **settings)`, e.g. `name="resnet34", num_classes=10`."""
    models = importlib.import_module(f"{library('torchvision').__name__}.models")
    known = models.list_models()
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}{did_you_mean(name, known)}", key="model.name")
    return cast("nn.Module", _build(models.get_model, "torchvision", name, settings))


def timm_model(name: str, **settings: Any) -> nn.Module:
    """`timm.create_model(name, **settings)`, e.g. `name="resnet18", num_classes=10, in_chans=1`."""
    timm = library("timm")
    # `resnet18.a1_in1k` is an architecture and the tag of its weights; `hf-hub:owner/name` is not ours to check.
    architecture = name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models())
        raise ConfigError(f"timm has no model {architecture!r}{near}", key="model.name")
    return cast("nn.Module", _build(timm.create_model, "timm", name, settings))


def transformers_model(
    architecture: str,
    config: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    output: str | None = None,
    ignore_mismatched_sizes: bool = False,
) -> nn.Module:
    """A model class of transformers, freshly initialised from `config` or loaded from `pretrained`.

    `architecture` is the class's name: a model (`ResNetForImageClassification`) or an auto class
    (`AutoModelForSequenceClassification`; then `config` needs `model_type`). `config` holds keys of the
    architecture's configuration (`hidden_sizes`, `num_labels` ...). `pretrained` is a local folder, `package:NAME` for
    the files inside an installed Python package, or a name on the Hugging Face hub; `config` then overrides the saved
    configuration (a new `num_labels` needs `ignore_mismatched_sizes`, which initialises the head afresh). `output`
    picks one field of what the model returns (`logits`), for training code that expects a tensor. Code from the hub is
    never run.
    """
    transformers = library("transformers")
    settings = dict(config or {})
    is_auto = architecture.startswith("AutoModel")
    cls = _model_class(transformers, architecture, is_auto)
    if pretrained is None:
        config_class = _config_class(transformers, cls, is_auto, settings.pop("model_type", None))
        model = _from_config(cls.from_config if is_auto else cls, config_class, settings)
    else:
        own_type = None if is_auto else cls.config_class.model_type
        settings["ignore_mismatched_sizes"] = ignore_mismatched_sizes
        model = _from_pretrained(transformers, cls, own_type, pretrained, settings)
    if output is None:
        return model
    from nnicompress.models.outputs import OneOutput

    return OneOutput(model, output)


def _model_class(transformers: ModuleType, architecture: str, is_auto: bool) -> Any:
    """The class of this name, where it is a model or an auto class of models."""
    found = getattr(transformers, architecture, None)
    if isinstance(found, type) and (is_auto or issubclass(found, transformers.PreTrainedModel)):
        return found
    known = [name for name in dir(transformers) if "For" in name or name.endswith("Model")]
    near = did_you_mean(architecture, known)
    raise ConfigError(f"transformers has no model class {architecture!r}{near}", key="model.architecture")


def _config_class(transformers: ModuleType, cls: Any, is_auto: bool, model_type: str | None) -> Any:
    """The configuration class of a model class; an auto class has one for each model type."""
    if is_auto:
        if model_type is None:
            raise ConfigError(
                f"{cls.__name__} serves many models; name one, for example bert", key=f"{_CONFIG}.model_type"
            )
        known = transformers.CONFIG_MAPPING
        if model_type not in known:
            near = did_you_mean(model_type, known.keys())
            raise ConfigError(f"transformers has no model type {model_type!r}{near}", key=f"{_CONFIG}.model_type")
        return known[model_type]
    own = cls.config_class.model_type
    if model_type not in (None, own):
        raise ConfigError(
            f"{model_type!r} contradicts {cls.__name__}, which is {own!r}; leave it out", key=f"{_CONFIG}.model_type"
        )
    return cls.config_class


def _from_config(build: Any, config_class: Any, settings: dict[str, Any]) -> nn.Module:
    """A freshly initialised model; every key of `settings` must be one that the configuration class knows."""
    try:
        # A configuration keeps any key as an attribute, so a misspelt one would be ignored without a word.
        defaults = config_class()
        for key in settings:
            if not hasattr(defaults, key):
                near = did_you_mean(key, [name for name in dir(defaults) if not name.startswith("_")])
                raise ConfigError(f"{config_class.__name__} has no such key{near}", key=f"{_CONFIG}.{key}")
        return cast("nn.Module", build(config_class(**settings)))
    except (TypeError, ValueError, _strict_error()) as error:
        raise ConfigError(f"transformers refuses it: {_one_line(error)}", key=_CONFIG) from error


def _from_pretrained(
    transformers: ModuleType, cls: Any, own_type: str | None, pretrained: str, settings: dict[str, Any]
) -> nn.Module:
    """A model with saved weights; `own_type` is the class's model type, or None for an auto class."""
    try:
        folder = local_folder(pretrained)
    except UserError as error:
        raise ConfigError(str(error), key=_PRETRAINED) from error
    source: dict[str, Any] = {"local_files_only": folder is not None, "trust_remote_code": False}
    where = pretrained if folder is None else str(folder)
    try:
        # A class given another model's weights warns, and starts from random ones.
        saved_type = transformers.AutoConfig.from_pretrained(where, **source).model_type
        if own_type not in (None, saved_type):
            raise ConfigError(
                f"{pretrained!r} holds a {saved_type!r}, and {cls.__name__} is {own_type!r}", key=_PRETRAINED
            )
        with _quiet(transformers):
            return cast("nn.Module", cls.from_pretrained(where, **source, **settings))
    except (OSError, TypeError, ValueError, _strict_error()) as error:
        raise ConfigError(f"cannot load {pretrained!r}: {_one_line(error)}", key=_PRETRAINED) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ConfigError(
            f"{pretrained!r} has other shapes than model.config asks for; "
            "set model.ignore_mismatched_sizes=true to initialise the parameters that differ afresh",
            key=_PRETRAINED,
        ) from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without the report on a head that the saved weights lack, each time the model is built."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _strict_error() -> type[Exception]:
    """What the typed configurations of transformers raise about a value; it is no ValueError."""
    return cast("type[Exception]", importlib.import_module("huggingface_hub.errors").StrictDataclassError)


def _build(function: Any, source: str, name: str, settings: Mapping[str, Any]) -> Any:
    """Call a library's builder; what it says about wrong settings becomes one line."""
    try:
        return function(name, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source} cannot build {name!r}: {_one_line(error)}", key="model") from error


def _one_line(error: Exception, most: int = 300) -> str:
    """The error's text on one line, cut after `most` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]} ..."
