"""RopeConfig from config.json: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from flashlet.model.config import RopeConfig, RopeScalingType
from flashlet.model.errors import ModelFormatError, UnsupportedModelError

DEFAULT_THETA = 10_000.0
SCALING_TYPES: dict[str, RopeScalingType] = {
    "default": "none",
    "none": "none",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
}


class RopeParameters(msgspec.Struct):
    """The keys inside `rope_parameters` or `rope_scaling`; `type` is the older name of `rope_type`."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float | None = None
    full_attention: Any = None
    sliding_attention: Any = None


class RopeFields(msgspec.Struct, kw_only=True):
    """The keys of config.json that rotary embeddings depend on."""

    max_position_embeddings: int
    original_max_position_embeddings: int | None = None
    rope_theta: float | None = None
    rope_scaling: RopeParameters | None = None
    rope_parameters: RopeParameters | None = None
    partial_rotary_factor: float | None = None


def rope_config(fields: RopeFields) -> RopeConfig:
    """Rotary embedding of the model. Raises ModelFormatError or UnsupportedModelError."""
    parameters = fields.rope_scaling or fields.rope_parameters or RopeParameters()
    scaling = _scaling_type(fields, parameters)
    theta = parameters.rope_theta or fields.rope_theta or DEFAULT_THETA
    if scaling == "none":
        return RopeConfig(theta=theta)
    if scaling == "linear":
        return RopeConfig(theta=theta, scaling=scaling, factor=_required("factor", parameters.factor))
    original = (
        fields.original_max_position_embeddings
        or parameters.original_max_position_embeddings
        or fields.max_position_embeddings
    )
    if original < 1:
        raise ModelFormatError(
            f"config.json: original_max_position_embeddings: expected a positive number, found {original}"
        )
    if scaling == "llama3":
        return _llama3(theta, original, parameters)
    return _yarn(theta, original, fields, parameters)


def _scaling_type(fields: RopeFields, parameters: RopeParameters) -> RopeScalingType:
    name = parameters.rope_type or parameters.type or "default"
    if name not in SCALING_TYPES:
        raise UnsupportedModelError(
            f"config.json: rope_type: expected one of {', '.join(SCALING_TYPES)}, found {name}"
        )
    if parameters.full_attention is not None or parameters.sliding_attention is not None:
        raise UnsupportedModelError(
            "config.json: rotary embeddings that differ by layer type are not supported"
        )
    for partial in (parameters.partial_rotary_factor, fields.partial_rotary_factor):
        if partial not in {None, 1.0}:
            raise UnsupportedModelError(f"config.json: partial_rotary_factor: expected 1, found {partial}")
    return SCALING_TYPES[name]


def _llama3(theta: float, original: int, parameters: RopeParameters) -> RopeConfig:
    low = _required("low_freq_factor", parameters.low_freq_factor)
    high = _required("high_freq_factor", parameters.high_freq_factor)
    if not 0 < low < high:
        raise ModelFormatError(
            f"config.json: expected 0 < low_freq_factor < high_freq_factor, found {low} and {high}"
        )
    return RopeConfig(
        theta=theta,
        scaling="llama3",
        factor=_required("factor", parameters.factor),
        original_context=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(theta: float, original: int, fields: RopeFields, parameters: RopeParameters) -> RopeConfig:
    factor = parameters.factor or fields.max_position_embeddings / original
    attention_factor = parameters.attention_factor
    if attention_factor is None and parameters.mscale and parameters.mscale_all_dim and factor > 1:
        growth = 0.1 * math.log(factor)
        attention_factor = (parameters.mscale * growth + 1) / (parameters.mscale_all_dim * growth + 1)
    return RopeConfig(
        theta=theta,
        scaling="yarn",
        factor=factor,
        original_context=original,
        beta_fast=parameters.beta_fast or 32.0,
        beta_slow=parameters.beta_slow or 1.0,
        attention_factor=attention_factor,
        truncate=parameters.truncate,
    )


def _required(name: str, value: float | None) -> float:
    if value is None:
        raise ModelFormatError(f"config.json: rope_parameters.{name}: expected a number, found none")
    return value
