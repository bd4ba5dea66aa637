"""A Ray cluster on this machine, only on loopback, in which each node has its own temporary folder.

    python -m tests.ray_cluster FOLDER

Prints the address of the head, which has no CPU. Each line on standard input is then a command: `add NAME` adds a node
with one CPU and prints `added`, and `kill NAME` kills all processes of a node and prints nothing. The end of the input
ends the cluster.
"""

import os
import sys
from pathlib import Path

import psutil

# This setting keeps Ray off other machines. Ray reads it when it is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

from ray.cluster_utils import Cluster


def main(folder: Path) -> None:
    # By default it takes a minute until a node counts as lost.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    # Ray writes the cluster's address to `ray` in RAY_TMPDIR, not to a node's folder, and does not create that folder.
    os.environ["RAY_TMPDIR"] = str(folder)
    (folder / "ray").mkdir()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "temp_dir": str(folder / "ray"),
            "_system_config": health,
        },
    )
    nodes = {}
    print(cluster.address, flush=True)
    try:
        for line in sys.stdin:
            what, name = line.split()
            if what == "add":
                (folder / name).mkdir()
                nodes[name] = cluster.add_node(num_cpus=1, env_vars={"TMPDIR": str(folder / name)})
                print("added", flush=True)
            else:
                for process in family(nodes[name]):
                    process.kill()
    finally:
        cluster.shutdown()


def family(node: object) -> list[psutil.Process]:
    """Return a node's processes and all that they have started."""
    own = [psutil.Process(info[0].process.pid) for info in node.all_processes.values()]  # type: ignore[attr-defined]
    return [each for process in own for each in [process, *process.children(recursive=True)]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
