"""compose.yaml and the Kubernetes manifests: what the API takes, and that all say the same of the gateway."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from gatewayctl.settings import key_files
from gatewayctl.settings.model import load_settings
from gatewayctl.supervisor import supervisor

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "image" / "kubernetes"
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in KUBERNETES.glob("*.yaml")}
KUSTOMIZATION = MANIFESTS.pop("kustomization.yaml")
POD = MANIFESTS["deployment.yaml"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
(SERVICE,) = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
CONTAINERFILE = (ROOT / "image" / "Containerfile").read_text()


def items(volume: str) -> dict[str, tuple[str, int]]:
    """Return what a volume takes from the Secret: the path of each key, and its mode."""
    (found,) = (its["secret"] for its in POD["volumes"] if its["name"] == volume)
    assert found["secretName"] == MANIFESTS["secret.yaml"]["metadata"]["name"]
    return {item["key"]: (item["path"], item["mode"]) for item in found["items"]}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("version", ["1.30", "1.35"])
def test_the_api_takes_it(name: str, version: str) -> None:
    """Each is what the schemas of an old and a new Kubernetes ask for, without a field that they do not know."""
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_api_refuses_what_it_does_not_know() -> None:
    """A misspelt field is found: the schemas are not mere decoration."""
    wrong = {**MANIFESTS["service.yaml"]}
    wrong["spec"] = {**wrong["spec"], "externalTrafficPolcy": "Local"}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.35", strict=True)


def test_all_is_applied_but_the_placeholders() -> None:
    """``kubectl apply -k`` never puts the example's Secret over the real one."""
    assert {*KUSTOMIZATION["resources"]} == MANIFESTS.keys() - {"secret.yaml"}
    assert {container["image"] for container in (*POD["initContainers"], CONTAINER)} == {
        image["name"] for image in KUSTOMIZATION["images"]
    }


def test_all_are_about_the_same_pods() -> None:
    """What selects pods selects the Deployment's."""
    labels = MANIFESTS["deployment.yaml"]["spec"]["template"]["metadata"]["labels"]
    (spread,) = POD["topologySpreadConstraints"]
    assert [
        MANIFESTS["deployment.yaml"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["service.yaml"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ] == [labels] * 5


def test_ports() -> None:
    """All lead to the port that the gateway listens on, and out go the remote's and DNS alone."""
    settings = load_settings(None, {}, {"REMOTE_HOST": "shell.example.org"})
    port = settings.gateway_port
    assert f"EXPOSE {port}/tcp\n" in CONTAINERFILE
    assert SERVICE["ports"] == [f"{port}:{port}"]
    assert CONTAINER["ports"] == [{"name": "ssh", "containerPort": port}]
    assert [its["targetPort"] for its in MANIFESTS["service.yaml"]["spec"]["ports"]] == ["ssh"]
    policy = MANIFESTS["networkpolicy.yaml"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": port}]}]
    dns, remote = policy["egress"]
    assert dns == {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    first, last = map(int, settings.remote_mosh_ports.split(":"))
    assert remote["ports"] == [
        {"protocol": "TCP", "port": settings.remote_port},
        {"protocol": "UDP", "port": first, "endPort": last},
    ]


def test_rights_are_the_same() -> None:
    """Compose and Kubernetes give the container as little as each other."""
    security = CONTAINER["securityContext"]
    assert SERVICE["cap_drop"] == security["capabilities"]["drop"] == ["ALL"]
    assert SERVICE["cap_add"] == security["capabilities"]["add"]
    assert SERVICE["read_only"] is security["readOnlyRootFilesystem"] is True
    assert SERVICE["security_opt"] == ["no-new-privileges"]
    assert security["allowPrivilegeEscalation"] is False
    assert "privileged" not in {**SERVICE, **security}


def test_what_is_written_to_is_the_same() -> None:
    """/run and /tmp are memory, of the same sizes."""
    options = {}
    for line in SERVICE["tmpfs"]:
        path, _, words = line.partition(":")
        options[path] = dict(word.split("=") for word in words.split(","))
    (modes,) = POD["initContainers"]
    mounts = {its["mountPath"]: its["name"] for its in CONTAINER["volumeMounts"]}
    volumes = {its["name"]: its for its in POD["volumes"]}
    for path, its in options.items():
        assert f"chmod {its['mode']} {path}" in modes["command"][-1]
        size = its["size"].replace("m", "Mi")
        assert volumes[mounts.pop(path)]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}
    assert mounts == {"/keys": "keys", "/etc/gateway": "host-key"}
    assert all(its["readOnly"] for its in CONTAINER["volumeMounts"] if its["mountPath"] in mounts)
    assert SERVICE["mem_limit"] == "2g"
    assert CONTAINER["resources"]["limits"] == {"memory": "2Gi"}


def test_what_strangers_may_take_fits() -> None:
    """100 sessions and all logins that sshd lets be under way have memory and processes (measured on Debian 13)."""
    found = re.search(r"^MaxStartups \d+:\d+:(\d+)$", (ROOT / "sshd_config.d/60-abuse.conf").read_text(), re.MULTILINE)
    assert found
    logins, sessions = int(found[1]), 100
    assert logins * 3.6 + sessions * 8.5 + 100 + 30 < 2 * 1024**3 / 1e6
    # A thread of the broker's for each connection to the remote, and 140 that make or use them.
    assert logins * 3 + sessions * (3 + 1) + 140 < SERVICE["pids_limit"]


def test_keys_are_where_the_gateway_looks(tmp_path: Path) -> None:
    """The Secret's files have the names of GATEWAY_KEYS_DIR, with modes that are accepted; and there is a host key."""
    assert "GATEWAY_KEYS_DIR=/keys" in CONTAINERFILE
    secret = {**items("keys"), **items("host-key")}
    assert secret.keys() == MANIFESTS["secret.yaml"]["stringData"].keys()
    settings = load_settings(None, {}, {"REMOTE_HOST": "h"})
    assert settings.gateway_host_key_path == Path("/etc/gateway") / secret["host_key"][0]
    for key, (name, mode) in items("keys").items():
        assert name in key_files.FILES.values()
        path = tmp_path / name
        path.touch()
        path.chmod(mode)
        key_files.check(path, key, private=key == "id_ed25519")
        assert bool(mode & 0o004) is (key != "id_ed25519"), "users' ssh reads what is not secret"


def test_there_is_time_to_end() -> None:
    """Whoever stops the gateway waits longer than it takes."""
    assert int(SERVICE["stop_grace_period"].rstrip("s")) > supervisor.GRACE_S
    pause_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > supervisor.GRACE_S + pause_s


def test_probes_are_the_health_check() -> None:
    """All three run the image's own HEALTHCHECK; one that restarts the gateway asks for what a restart would mend."""
    (command,) = re.findall(r"^HEALTHCHECK .* CMD \[(.+)\]$", CONTAINERFILE, re.MULTILINE)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        live = ["--live"] if probe == "livenessProbe" else []
        assert CONTAINER[probe]["exec"]["command"] == [*yaml.safe_load(f"[{command}]"), *live], probe
