"""What models are asked to answer with, for clients that take pydantic classes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Weather(BaseModel):
    """An answer with a shape."""

    sky: Literal["clear", "cloudy"]
    windy: bool


class GetWeather(BaseModel):
    """Weather of a city."""

    city: Literal["Paris", "London"]
