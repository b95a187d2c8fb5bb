"""Adapters: one file per family of models, each implementing the protocols of `evalkit.types`.

A YAML in `configs/model/` names the class, the checkpoint and the published protocol. What several families need
stands in small files here: `abilities`, `checkpoints`, `generation`, `pixels`, `rows`.
"""
