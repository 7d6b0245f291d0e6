"""The Deployment at work, played by podman, in the lab's network.

podman takes the manifest as it is but for what a cluster has and podman has not: a node for the second replica, and the
kubelet, which gives the files of a Secret and an emptyDir modes that podman 4.3 does not know. Both are laid out here
as the kubelet does it (pkg/volume/util/atomic_writer.go, pkg/volume/emptydir), and mounted in their place.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab import client
from lab.gateway import ADDRESS
from lab.podman import PODMAN, podman
from lab.users import make_key
from lab.waiting import wait_until
from lab.wan import FAR_IPV4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.bench import Lab
    from lab.users import User

MANIFESTS = Path(__file__).parents[2] / "image" / "kubernetes"
PORT = 2999


def load(name: str) -> Any:
    """Read a manifest."""
    return yaml.safe_load((MANIFESTS / name).read_text())


class Pod:
    """The Deployment's pod; ends with ``close``.

    Args:
        lab: Whose remote is REMOTE_HOST, and in whose network the pod is.
        image: The image.
        secret: The Secret's values, by key.
    """

    def __init__(self, lab: Lab, image: str, secret: dict[str, str]) -> None:
        """Play it."""
        self._directory = lab.directory / "pod"
        self._directory.mkdir()
        deployment = load("deployment.yaml")
        name = f"smg-lab-{os.getpid()}"
        deployment["metadata"]["name"] = name
        deployment["spec"]["replicas"] = 1
        spec = deployment["spec"]["template"]["spec"]
        for container in (*spec["initContainers"], *spec["containers"]):
            container["image"] = image
        (gateway,) = spec["containers"]
        # Or podman leaves a volume behind, which the image has there.
        spec["initContainers"][0]["volumeMounts"] += [
            its for its in gateway["volumeMounts"] if its["name"] == "host-key"
        ]
        gateway["env"] = [{"name": "REMOTE_HOST", "value": FAR_IPV4}, {"name": "GATEWAY_PORT", "value": str(PORT)}]
        del gateway["ports"]  # podman would publish them
        spec["hostNetwork"] = True
        spec["restartPolicy"] = "Never"  # podman would start the init container again and again, too
        spec["volumes"] = [self._as_kubelet(volume, secret) for volume in spec["volumes"]]
        played = self._directory / "deployment.yaml"
        played.write_text(yaml.safe_dump(deployment))
        self._near = lab.near
        self._in_network("kube", "play", str(played)).check_returncode()
        names = podman("ps", "--all", "--pod", "--format={{.PodName}} {{.Names}}", f"--filter=name={name}").stdout
        words = next(line.split() for line in names.splitlines() if line.endswith(f"-{gateway['name']}"))
        self.pod, self.name = words

    def _as_kubelet(self, volume: dict[str, Any], secret: dict[str, str]) -> dict[str, Any]:
        """Lay a volume out as the kubelet does, and mount it from there."""
        path = self._directory / volume["name"]
        path.mkdir()
        path.chmod(0o1777)  # a tmpfs both
        if "secret" in volume:
            version = path / "..2026_01_01"
            version.mkdir(mode=0o755)
            (path / "..data").symlink_to(version.name)
            for item in volume["secret"]["items"]:
                file = version / item["path"]
                file.write_text(secret[item["key"]])
                file.chmod(item["mode"])
                (path / item["path"]).symlink_to(f"..data/{item['path']}")
        return {"name": volume["name"], "hostPath": {"path": str(path), "type": "Directory"}}

    def _in_network(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run podman in the lab's network, which then is the "host" network of what it starts."""
        argv = self._near.network_argv([str(PODMAN), *arguments])
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            start_new_session=True,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the gateway's container as root."""
        return self._in_network("exec", self.name, *command)

    def log(self) -> str:
        """Return what the gateway wrote."""
        done = podman("logs", self.name)
        return done.stdout + done.stderr

    def is_ready(self) -> bool:
        """Run the probe that all three are."""
        (gateway,) = load("deployment.yaml")["spec"]["template"]["spec"]["containers"]
        return self.run(*gateway["readinessProbe"]["exec"]["command"]).returncode == 0

    def close(self) -> None:
        """Take it away."""
        podman("pod", "rm", "--force", self.pod, check=False)


@pytest.fixture(scope="module")
def host_key(lab: Lab) -> tuple[str, Path]:
    """Make a host key: its text, and what clients know of it."""
    key = make_key(lab.directory / "keys" / "host")
    known_hosts = lab.directory / "pod-known_hosts"
    known_hosts.write_text(f"[{ADDRESS}]:{PORT} {key.public}\n")
    return key.private.read_text(), known_hosts


@pytest.fixture(scope="module")
def pod(lab: Lab, image: str, host_key: tuple[str, Path]) -> Iterator[Pod]:
    """Play the pod once."""
    secret = {
        "id_ed25519": lab.gateway_key.private.read_text(),
        "known_hosts": lab.known_hosts.read_text(),
        "host_key": host_key[0],
    }
    assert secret.keys() == load("secret.yaml")["stringData"].keys()
    made = Pod(lab, image, secret)
    try:
        wait_until(made.is_ready, "the pod is ready")
        yield made
    finally:
        made.close()


def test_login(lab: Lab, pod: Pod, host_key: tuple[str, Path], user: User) -> None:
    """A user lands in a shell on the remote by mosh, and clients see the Secret's host key."""
    argv = client.ssh_argv(user, host=ADDRESS, port=PORT, known_hosts=host_key[1])
    terminal = lab.terminal(argv)
    terminal.wait_for(user.prompt)
    terminal.type("echo by $(ps -o comm= $PPID)\r")
    terminal.wait_for("by mosh-server")
    done = lab.run([*argv, "id -un; exit 3"])
    assert (done.stdout.decode(), done.returncode) == (f"{user.name}\n", 3), pod.log()
    terminal.close()


def test_what_it_may(pod: Pod) -> None:
    """Six capabilities, no new ones, a filter for system calls, and nothing to write to but /run and /tmp."""
    status = pod.run("cat", "/proc/1/status").stdout
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    # CHOWN 0, DAC_OVERRIDE 1, KILL 5, SETGID 6, SETUID 7, SYS_CHROOT 18 (linux/capability.h)
    expected = {"CapEff": "00000000000400e3", "CapBnd": "00000000000400e3", "NoNewPrivs": "1", "Seccomp": "2"}
    assert {name: lines[name] for name in expected} == expected
    for path in ("/x", "/etc/gateway/x", "/keys/x"):
        assert pod.run("touch", path).returncode != 0, path
    modes = pod.run("sh", "-c", "stat --format='%a %U' /run /tmp").stdout.splitlines()
    assert modes == ["755 root", "1777 root"]


def test_it_ends_in_time(pod: Pod, lab: Lab, host_key: tuple[str, Path], user: User) -> None:
    """SIGTERM ends sessions and gateway, within what is left of the grace period after preStop."""
    spec = load("deployment.yaml")["spec"]["template"]["spec"]
    (gateway,) = spec["containers"]
    pause_s = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    terminal = lab.terminal(client.ssh_argv(user, host=ADDRESS, port=PORT, known_hosts=host_key[1]))
    terminal.wait_for(user.prompt)
    podman("stop", f"--time={spec['terminationGracePeriodSeconds'] - pause_s}", pod.name)
    assert terminal.wait_exit() == 255
    assert "gateway: shutting down" in terminal.text
    assert podman("container", "inspect", "--format", "{{.State.ExitCode}}", pod.name).stdout.strip() == "0"
