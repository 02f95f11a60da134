"""GET /v1/models and /v1/models/{model}: what is served, also while it loads."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.models import ModelCard, ModelList
from flashlet.serving.api.service import Service


def models_router(service: Service) -> APIRouter:
    """The endpoints that name the model."""
    router = APIRouter(tags=["models"])

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "flashlet",
            "max_model_len": service.model.max_model_len if service.model else None,
        }

    @router.get("/v1/models", responses=responses(ModelList, errors=(401,)))
    async def list_models() -> Response:
        """List the names under which the model is served."""
        return json_response({"object": "list", "data": [card(name) for name in service.config.model_names]})

    @router.get("/v1/models/{model:path}", responses=responses(ModelCard, errors=(401, 404)))
    async def retrieve_model(model: str) -> Response:
        """Describe one of them."""
        service.check_name(model)
        return json_response(card(model))

    return router
