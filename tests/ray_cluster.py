"""A Ray cluster of two nodes on this machine, on loopback alone, each with a temporary folder of its own.

    python -m tests.ray_cluster FOLDER

Prints the address of the head, which has no CPU; a line on standard input then says what happens: `add NAME` adds a
node of one CPU and says `added`, `kill NAME` ends all that a node runs without a word; the end of the input ends all.
"""

import os
import sys
from pathlib import Path

import psutil

# Ray's name for "not on other machines", read when it is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

from ray.cluster_utils import Cluster


def main(folder: Path) -> None:
    # By default it is a minute until a node counts as gone.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    # Ray notes the cluster's address in the folder `ray` there, whatever a node's own is, and does not make it.
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
    """A node's processes and all that they have started."""
    own = [psutil.Process(info[0].process.pid) for info in node.all_processes.values()]  # type: ignore[attr-defined]
    return [each for process in own for each in [process, *process.children(recursive=True)]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
