"""`python -m tests.kubernetes.kubelet NAME`: a node of the cluster of KUBECONFIG, until it is interrupted."""

import argparse
import signal

from lightkube.config.kubeconfig import KubeConfig

from tests.kubernetes.kubelet.kubelet import Node, running_node


def main() -> None:
    """Run a node until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.kubelet", description=__doc__)
    parser.add_argument("name", help="of the node")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    labels = dict(each.split("=", 1) for each in arguments.label)
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with running_node(Node(arguments.name, KubeConfig.from_env(), labels)):
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
