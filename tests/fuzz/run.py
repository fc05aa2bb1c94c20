"""`make fuzz`: each target for so many seconds under atheris.

Ends with 1 where a target fails; the input is written beside. `python tests/fuzz/run.py [SECONDS] [TARGET ...]`
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
FOUND = Path(".ipnext") / "fuzz"
CODECS = ("codec", "tensors", "frames", "http")
DOCUMENTS = ("credential", "access_list", "audit", "manifests", "signature")


def fuzz(name, seconds):
    """Run a target in this process, from its seeds."""
    import atheris  # noqa: PLC0415  # in an environment of its own

    with atheris.instrument_imports(include=["serving", "ipnext", "targets", "documents"]):
        import documents  # noqa: PLC0415  # instrumented as it is imported
        import targets  # noqa: PLC0415  # as above
    corpus = Path(tempfile.mkdtemp())
    seeds = {target.__name__: (target, found) for target, found in (targets.SEEDS | documents.SEEDS).items()}
    target, found = seeds[name]
    for number, seed in enumerate(found):
        (corpus / str(number)).write_bytes(seed)
    FOUND.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={FOUND}/{name}-",
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, "-max_len=4096", str(corpus)], target)
    atheris.Fuzz()


def main(arguments):
    """All targets, each in a process of its own."""
    if arguments[:1] == ["--target"]:
        fuzz(arguments[1], int(arguments[2]))
        return 0
    seconds = arguments[0] if arguments else "60"
    names = arguments[1:] or [*CODECS, *DOCUMENTS]
    failed = [
        name
        for name in names
        if subprocess.run([sys.executable, __file__, "--target", name, seconds], check=False).returncode
    ]
    words = f"failed: {', '.join(failed)}; inputs in {FOUND}" if failed else f"nothing found in {', '.join(names)}"
    sys.stderr.write(f"{words}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
