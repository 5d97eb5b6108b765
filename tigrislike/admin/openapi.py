"""The admin API's description in OpenAPI 3.1, made from its declarations."""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec

from tigrislike import __version__

from .api import ENDPOINTS, PREFIX, Endpoint, ErrorAnswer

_REFUSALS: Final = {
    "400": "What was asked makes no sense.",
    "403": "No signature, a wrong one, or a key that is no admin key.",
    "404": "There is no such thing.",
    "405": "This path takes other methods.",
    "409": "Not in the state that it is in.",
    "503": "The database, or the disk, is out of reach.",
}


@functools.cache
def document() -> dict[str, Any]:
    """The document, as JSON's types."""
    types = [each.result for each in ENDPOINTS.values()] + [each.args for each in ENDPOINTS.values()] + [ErrorAnswer]
    (*schemas,), components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    results, arguments = schemas[: len(ENDPOINTS)], [each.args.__name__ for each in ENDPOINTS.values()]
    paths: dict[str, dict[str, Any]] = {}
    for endpoint, result, name in zip(ENDPOINTS.values(), results, arguments, strict=True):
        operation = _operation(endpoint, result, components[name])
        paths.setdefault("/" + endpoint.path, {})[endpoint.method.lower()] = operation
    used = {name: schema for name, schema in components.items() if name not in arguments}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tigrislike admin API",
            "version": __version__,
            "description": "Every request is signed with AWS Signature Version 4 by an admin key, in its headers.",
        },
        "servers": [{"url": PREFIX.rstrip("/")}],
        "security": [{"sigv4": []}],
        "paths": paths,
        "components": {
            "schemas": used,
            "securitySchemes": {
                "sigv4": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "AWS Signature Version 4, service s3, any region.",
                }
            },
        },
    }


def _operation(endpoint: Endpoint, result: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = arguments.get("properties", {})
    required = set(arguments.get("required", ()))
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": properties[name]} for name in endpoint.in_path
    ]
    rest = {name: schema for name, schema in properties.items() if name not in endpoint.in_path}
    operation: dict[str, Any] = {"operationId": endpoint.name, "summary": endpoint.summary}
    if endpoint.method == "GET":
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": _without_null(schema)}
            for name, schema in rest.items()
        ]
    elif rest:
        needed = sorted(required & rest.keys())
        schema = {"type": "object", "properties": rest, "required": needed, "additionalProperties": False}
        operation["requestBody"] = {"required": bool(needed), "content": {"application/json": {"schema": schema}}}
    if parameters:
        operation["parameters"] = parameters
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    operation["responses"] = {
        "200": {"description": "Done.", "content": {"application/json": {"schema": result}}},
        **{status: {"description": why, "content": failure} for status, why in _REFUSALS.items()},
    }
    return operation


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: a parameter is there or not."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) == 1:
        return {**{name: value for name, value in schema.items() if name not in ("anyOf", "default")}, **kinds[0]}
    if None in schema.get("enum", ()):
        return {"enum": [each for each in schema["enum"] if each is not None]}
    return schema
