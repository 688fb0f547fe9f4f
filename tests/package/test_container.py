"""The Kubernetes files and the container's recipe are what their documentation asks for, and fit the programs.

No published schema is to be had from PyPI or Debian, so each field is checked by hand: none is there that is not known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infiniswap import __version__
from infiniswap.daemon.main import command

ROOT = Path(__file__).resolve().parents[2]
STRING, NUMBER, FLAG, ANY = str, int, bool, object
LABELS = {"app": STRING}
PORT = {"name": STRING, "protocol": STRING}
# Fields by the reference of the API, as far as they are used; a list holds what its one element is.
SERVICE = {
    "apiVersion": STRING,
    "kind": STRING,
    "metadata": {"name": STRING, "labels": LABELS},
    "spec": {"clusterIP": STRING, "selector": LABELS, "ports": [{**PORT, "port": NUMBER}]},
}
CONTAINER = {
    "name": STRING,
    "image": STRING,
    "args": [STRING],
    "env": [{"name": STRING, "valueFrom": {"fieldRef": {"fieldPath": STRING}}}],
    "ports": [{**PORT, "containerPort": NUMBER}],
    "resources": {"requests": {"memory": STRING, "cpu": STRING}, "limits": {"memory": STRING}},
    "volumeMounts": [{"name": STRING, "mountPath": STRING, "readOnly": FLAG}],
    "readinessProbe": {"tcpSocket": {"port": STRING}, "periodSeconds": NUMBER},
    "securityContext": {
        "runAsNonRoot": FLAG,
        "runAsUser": NUMBER,
        "allowPrivilegeEscalation": FLAG,
        "readOnlyRootFilesystem": FLAG,
        "capabilities": {"drop": [STRING]},
    },
}
POD = {
    "hostNetwork": FLAG,
    "dnsPolicy": STRING,
    "nodeSelector": {"infiniswap-donor": STRING},
    "automountServiceAccountToken": FLAG,
    "terminationGracePeriodSeconds": NUMBER,
    "securityContext": {"fsGroup": NUMBER},
    "volumes": [{"name": STRING, "secret": {"secretName": STRING, "defaultMode": NUMBER}}],
    "containers": [CONTAINER],
}
DAEMON_SET = {
    "apiVersion": STRING,
    "kind": STRING,
    "metadata": {"name": STRING, "labels": LABELS},
    "spec": {
        "selector": {"matchLabels": LABELS},
        "updateStrategy": {"type": STRING, "rollingUpdate": {"maxUnavailable": NUMBER}},
        "template": {"metadata": {"labels": LABELS}, "spec": POD},
    },
}


def wrong(value: Any, schema: Any, path: str = "") -> list[str]:
    """Fields that are missing, unknown or of another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path}: no table"]
        found = [f"{path}.{name}: unknown" for name in value.keys() - schema.keys()]
        found += [f"{path}.{name}: missing" for name in schema.keys() - value.keys()]
        return found + [
            line for name in value.keys() & schema for line in wrong(value[name], schema[name], f"{path}.{name}")
        ]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{path}: no list"]
        return [line for number, one in enumerate(value) for line in wrong(one, schema[0], f"{path}[{number}]")]
    return [] if type(value) is schema else [f"{path}: {value!r} is no {schema.__name__}"]


@pytest.fixture
def documents() -> list[Any]:
    """The service and the daemon set."""
    return list(yaml.safe_load_all((ROOT / "packaging/kubernetes/donors.yaml").read_text()))


def test_fields(documents: list[Any]) -> None:
    """Each field is one of the API, with a value of its type."""
    service, daemon_set = documents
    assert wrong(service, SERVICE) == []
    assert wrong(daemon_set, DAEMON_SET) == []
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (daemon_set["apiVersion"], daemon_set["kind"]) == ("apps/v1", "DaemonSet")


def test_a_wrong_field_is_found(documents: list[Any]) -> None:
    """Misspelt, missing, or a number in the place of a word."""
    service, _ = documents
    service["spec"]["clusterIp"] = service["spec"].pop("clusterIP")
    service["metadata"]["name"] = 5
    assert len(wrong(service, SERVICE)) == 3


def test_they_fit_each_other(documents: list[Any]) -> None:
    """The service selects the pods, which have its port; options are those of the daemon; the version is this one."""
    service, daemon_set = documents
    template = daemon_set["spec"]["template"]
    container = template["spec"]["containers"][0]
    assert service["spec"]["clusterIP"] == "None"
    assert (
        service["spec"]["selector"] == template["metadata"]["labels"] == daemon_set["spec"]["selector"]["matchLabels"]
    )
    assert service["spec"]["ports"][0]["name"] == "infiniswap"  # _infiniswap._tcp
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert named["infiniswap"] == service["spec"]["ports"][0]["port"]
    assert container["readinessProbe"]["tcpSocket"]["port"] in named
    (volume,), (mount,) = template["spec"]["volumes"], container["volumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["secret"]["defaultMode"] & 0o037 == 0  # or the daemon would not take the key (check_key_file)
    assert template["spec"]["securityContext"]["fsGroup"] == container["securityContext"]["runAsUser"]
    assert all(word.startswith(f"{mount['mountPath']}/") for word in container["args"] if word.startswith("/"))
    assert container["image"].endswith(f":{__version__}")
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in container["args"] if word.startswith("--")} <= known


def test_the_container() -> None:
    """It starts the daemon that the package installs, as its own user, with options that there are."""
    text = (ROOT / "packaging/container/Containerfile").read_text()
    known = {option for parameter in command.params for option in parameter.opts}
    orders = re.findall(r"^(?:ENTRYPOINT|CMD) \[(.*)\]$", text, re.MULTILINE)
    words = re.findall(r'"([^"]*)"', ",".join(orders))
    assert words[0] == "/usr/bin/infiniswapd"
    assert {word for word in words if word.startswith("--")} == {"--memory", "--listen"} <= known
    assert re.search(r"^USER infiniswap$", text, re.MULTILINE)
