"""Every file of `configs/model/` as the command line composes it."""

from __future__ import annotations

from evalkit import config

MODELS = {name: config.compose([config.Override(key="model", value=name)]) for name in config.options("model")}
