"""A Ray cluster of several nodes on this machine, in a process of its own. Commands on stdin: `kill NAME` and
`add NAME CPUS GPUS [VARIABLE=VALUE ...]`; the GPUs are such in Ray's books only, the variables are the node's own.

Prints the address first, then a line for each command that it has carried out.
"""

import os
import sys


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {}
    print("address", cluster.address, flush=True)
    for line in sys.stdin:
        command, name, *rest = line.split()
        if command == "add":
            cpus, gpus, *variables = rest
            own = dict(each.split("=", 1) for each in variables)
            nodes[name] = cluster.add_node(num_cpus=int(cpus), num_gpus=int(gpus), env_vars=own)
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        print("done", command, name, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
