"""Ray opens ports to all the world: its tests run in a network of their own."""

import subprocess

import pytest

# Of its own also because a machine's own address may be one that nothing can be sent to.
_PREFIX = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def in_own_network(command):
    """The command, as it must be started; where the machine forbids that, the test is left out."""
    if subprocess.run([*_PREFIX, "true"], capture_output=True, check=False).returncode:
        pytest.skip("Ray opens ports to all: this needs `unshare --map-root-user --net`, which this machine forbids")
    return [*_PREFIX, *command]
