"""A program in an engine's place that tries what an engine must not, and says how each went.

One line of JSON, then it sleeps. Paths and ports are in the variable PRYING, since what the operator's command names is
an engine's to read.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def tried(act):
    """How it went."""
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"


def connect(port):
    with socket.create_connection(("127.0.0.1", port), 10):
        pass


def listen(port):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))


def open_socket(family, kind, protocol=0):
    socket.socket(family, kind, protocol).close()


def connect_as_it_sends(port):
    """TCP Fast Open: no call of connect(2)."""
    with socket.socket() as one:
        one.sendto(b"secret", socket.MSG_FASTOPEN, ("127.0.0.1", port))


def run_own():
    """A program that it has brought along."""
    program = Path(tempfile.gettempdir()) / "own"
    shutil.copy(shutil.which("true"), program)
    program.chmod(0o700)
    subprocess.run([program], check=True)


def status(name):
    """A line of what the kernel says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(name)).split()[1]


def tries(directory, port):
    given = json.loads(os.environ["PRYING"])
    state, cache, host = Path(given["state"]), directory.parent, os.getppid()
    return {
        "reads its snapshot": tried((directory / "config.json").read_bytes),
        "reads another snapshot": tried((cache / given["other"] / "config.json").read_bytes),
        "reads the agent's state": tried((state / "wanted.json").read_bytes),
        "lists the agent's state": tried(lambda: list(state.iterdir())),
        "writes there": tried(lambda: (state / "made").write_bytes(b"")),
        "writes into the cache": tried(lambda: (directory / "config.json").write_bytes(b"")),
        "adds to the cache": tried(lambda: (directory / "made").write_bytes(b"")),
        "writes a log of others": tried(lambda: (state / "logs" / "made.log").write_bytes(b"")),
        "writes into its home": tried(lambda: (Path.home() / "made").write_bytes(b"")),
        "writes a temporary file": tried(lambda: tempfile.TemporaryFile().close()),
        "starts the system's compiler": tried(lambda: subprocess.run(["/bin/true"], check=True)),
        "starts itself": tried(lambda: subprocess.run([sys.executable, "-S", "-c", ""], check=True)),
        "starts a program that it wrote": tried(run_own),
        "listens on its port": tried(lambda: listen(port)),
        "listens on another port": tried(lambda: listen(given["port"])),
        "connects to a foreign port": tried(lambda: connect(given["port"])),
        "connects as it sends": tried(lambda: connect_as_it_sends(given["port"])),
        "opens a local socket": tried(lambda: open_socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        "reads the machine's addresses": tried(lambda: open_socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "opens a socket of UDP": tried(lambda: open_socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "opens a socket of MPTCP": tried(lambda: open_socket(socket.AF_INET, socket.SOCK_STREAM, 262)),
        "opens a socket to its hypervisor": tried(lambda: open_socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
        "hears of devices": tried(lambda: open_socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)),
        "signals its keeper": tried(lambda: os.kill(host, 0)),
        "signals a process of its own": tried(lambda: os.kill(os.getpid(), 0)),
        "reads another's environment": tried(Path(f"/proc/{given['test']}/environ").read_bytes),
        "reads its own": tried(Path("/proc/self/environ").read_bytes),
        "privileges": {"new": status("NoNewPrivs") == "0", "over processes": int(status("CapEff"), 16) & ~0b110 != 0},
        "secrets": [name for name in os.environ if name.startswith(("AWS_", "HF_TOKEN", "PG"))],
        "home": str(Path.home()),
        "outside of its home": [
            name
            for name in ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")
            if not Path(os.environ.get(name, "")).is_relative_to(Path.home().parent)
        ],
    }


def main():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout.write(json.dumps(tries(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
    sys.stdout.flush()
    time.sleep(1000)


if __name__ == "__main__":
    main()
