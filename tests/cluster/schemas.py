"""Kubernetes schemas as JSON Schema, in which unknown fields are errors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "kuberay-crds"
NAMES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {"name": {"type": "string", "maxLength": 47}, "labels": {"type": "object"}},
}
"""Metadata of an object: the operator adds to names, and a label has at most 63 characters."""


def strict(schema: Any) -> Any:
    """Return a schema of Kubernetes in which unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    closed = "properties" in found and "additionalProperties" not in found
    if closed and not found.get("x-kubernetes-preserve-unknown-fields") and isinstance(found["properties"], dict):
        found["additionalProperties"] = False
    return found


@cache
def published(kind: str) -> Any:
    """Return the strict schema of a kind of KubeRay; skip the test where the published definitions are absent."""
    path = CRDS / f"ray.io_{NAMES[kind]}.yaml"
    if not path.is_file():
        pytest.skip(f"the published CustomResourceDefinitions of KubeRay are not in {CRDS}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    found = strict(schema)
    found["properties"] |= {"metadata": METADATA, "apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    return found


def schema_of(kind: str) -> Any:
    """Return the strict schema of a kind of object; those of Kubernetes itself are parts of KubeRay's."""
    if kind in NAMES:
        return published(kind)
    cluster = published("RayCluster")["properties"]["spec"]["properties"]
    if kind == "NetworkPolicy":
        version, ingress = (
            "networking.k8s.io/v1",
            cluster["networkPolicy"]["properties"]["head"]["properties"]["ingressRules"],
        )
        selector = ingress["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
        types = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}}
        spec = {
            "properties": {"podSelector": selector, "policyTypes": types, "ingress": ingress},
            "required": ["podSelector"],
        }
    elif kind == "PersistentVolumeClaim":
        pod = cluster["headGroupSpec"]["properties"]["template"]["properties"]["spec"]["properties"]
        claim = pod["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
        version, spec = "v1", claim["properties"]["spec"]
    else:
        raise AssertionError(f"no schema of {kind}")
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": version},
            "kind": {"const": kind},
            "metadata": METADATA,
            "spec": {**spec, "type": "object", "additionalProperties": False},
        },
    }


def errors_of(schema: Any, thing: Any) -> list[str]:
    """Return what is wrong with a thing."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft7Validator(schema).iter_errors(thing)
    ]


def misspelt(thing: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of every key of a thing, with a copy in which this key is misspelt."""
    yield from _misspelt(thing, thing, path)


def _misspelt(whole: Any, part: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        if isinstance(part, dict):
            wrong = copy.deepcopy(whole)
            parent = wrong
            for step in path:
                parent = parent[step]
            parent[f"{key}x"] = parent.pop(key)
            yield (*path, key), wrong
        yield from _misspelt(whole, value, (*path, key))
