"""What an engine may do follows from its settings and from what the operator says."""

import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from ipnext.model.settings.engine import VllmSettings
from serving.confinement.landlock import Confinement
from serving.genai.engine.enclosure import PORTS, Enclosures, enclosures_place, engine_ports, forget_places
from serving.genai.engine.program_paths import program_paths, program_words

NOBODY = 65534
SOCKET = Path("/run/h/e/1/e.sock")


def ports(address=SOCKET, **settings):
    found = engine_ports(VllmSettings(**settings), address, side_port=20_007)
    return {port for one in found.binds for port in one}, {port for one in found.connects for port in one}


def test_an_engine_on_a_socket_has_no_port_but_one_that_the_kernel_chooses():
    assert ports() == ({0}, set())


def test_an_engine_on_a_port_has_that_one():
    assert ports(21_000) == ({0, 21_000}, set())


@pytest.mark.parametrize("several", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_processes_of_one_engine_meet_on_ports_that_the_kernel_chooses(several):
    binds, connects = ports(**several)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert (binds, connects) == ({0}, set(range(first, last + 1)))
    assert not {80, 443, 5432, 7233, 8080} & connects


def test_engines_that_hand_over_reach_each_others_side_channels():
    binds, connects = ports(kv_transfer={"connector": "nixl", "role": "decode"})
    assert binds == {0, 20_007}
    assert connects > set(PORTS)
    assert ports(kv_transfer={"connector": "example", "role": "decode"}) == ({0}, set())


def environment(given, *writable):
    found = Enclosures(place=Path("/tmp/engines"), mode=Confinement.AVAILABLE, writable=writable)
    return found.enclosure("one").environment(given)


def test_home_caches_and_temporary_files_are_in_the_engines_directory():
    given = {"HOME": "/root", "TMPDIR": "/var/tmp", "TRITON_CACHE_DIR": "/root/.triton", "A": "b"}
    found = environment(given)
    assert found["A"] == "b"
    names = ("HOME", "TMPDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "VLLM_RPC_BASE_PATH", "HF_HOME")
    assert [name for name in names if not found[name].startswith("/tmp/engines/one/")] == []


def test_a_cache_that_the_operator_lets_engines_write_stays():
    given = {"VLLM_CACHE_ROOT": "/srv/compiled/vllm", "HF_HOME": "/srv/other"}
    found = environment(given, Path("/srv/compiled"))
    assert found["VLLM_CACHE_ROOT"] == "/srv/compiled/vllm"
    assert found["HF_HOME"] != "/srv/other"


def test_sockets_in_an_engines_temporary_directory_have_room():
    usual = enclosures_place(Path("/a/very/long/path" * 9), "model.part.hardware.0", user=4_294_967_294)
    place = Path(tempfile.mkdtemp(prefix=f"{usual.name}-"))  # if another user has made the usual one
    place.rmdir()
    scratch = Enclosures(place=place).enclosure("1a2b3c4d").environment({})["TMPDIR"]
    assert len(f"{scratch}/{'u' * 36}") <= 107


@pytest.fixture
def enclosures(tmp_path):
    return Enclosures(place=tmp_path / "ipnext-engines-1000-abc")


def occupy(place, by):
    """Make something of this name before the host does, which the user of the host did not make."""
    if by == "another user's directory":
        if os.geteuid() != 0:
            pytest.skip("only root makes directories of others")
        place.mkdir(mode=0o777)
        os.chown(place, NOBODY, NOBODY)
    elif by == "a link":
        (place.parent / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(place.parent / "elsewhere")
    else:
        place.touch()


@pytest.mark.parametrize("by", ["another user's directory", "a link", "a file"])
def test_engines_have_a_directory_that_nobody_can_guess_if_the_usual_one_is_taken(enclosures, by):
    occupy(enclosures.place, by)
    prepared = enclosures.prepare()
    assert prepared.place != enclosures.place
    assert prepared.place.parent == enclosures.place.parent
    found = prepared.place.lstat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o700)
    assert enclosures.place.exists(), "it is not ours to remove"
    assert not any(prepared.place.iterdir())


def test_the_directory_of_a_killed_host_is_removed_by_the_next_one_whatever_its_name(enclosures):
    occupy(enclosures.place, "a link")
    former = enclosures.prepare().place
    (former / "engine").mkdir()
    assert enclosures.prepare().place != former
    assert not former.exists()
    enclosures.place.unlink()
    assert enclosures.prepare() == enclosures
    (enclosures.place / "engine").mkdir()
    assert not any(enclosures.prepare().place.iterdir())


def test_a_host_that_ends_removes_what_is_its_own(enclosures):
    occupy(enclosures.place, "a link")
    place = enclosures.prepare().place
    forget_places(enclosures.place, user=os.geteuid() + 1)
    assert place.exists()
    forget_places(enclosures.place, user=os.geteuid())
    assert not place.exists()


def made(prefix):
    program = prefix / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    return program


def test_a_program_of_a_virtual_environment_is_read_with_the_one_below_it(tmp_path):
    base, own = tmp_path / "base", tmp_path / "own"
    made(base)
    (base / "lib" / "python3.11").mkdir(parents=True)
    program = own / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.symlink_to(base / "bin" / "python")
    (own / "pyvenv.cfg").write_text(f"home = {base}/bin\nversion = 3.11\n")
    assert program_paths([str(program)]) == {program, own, base, base / "bin" / "python"}


def test_directories_that_an_environment_adds_to_its_modules_are_read(tmp_path):
    program, shared = made(tmp_path / "own"), tmp_path / "shared"
    (tmp_path / "own" / "pyvenv.cfg").touch()
    site = tmp_path / "own" / "lib" / "python3.11" / "site-packages"
    for directory in (site, shared, tmp_path / "unnamed"):
        directory.mkdir(parents=True)
    (site / "more.pth").write_text(f"# {tmp_path}/unnamed\nimport os; os.sep\n\n/no/such\n{shared}\n")
    assert program_paths([str(program)]) == {program, tmp_path / "own", shared}


def test_a_program_in_a_bin_of_no_environment_opens_nothing_beside_it(tmp_path):
    program = made(tmp_path / "home")
    assert program_paths([str(program)]) == {program}


def test_what_an_operators_command_names_is_read_and_what_is_not_there_is_not(tmp_path):
    script = tmp_path / "engine.py"
    script.touch()
    words = [str(tmp_path / "no-such-program"), f"--config={script}", "relative", "--socket", "/nowhere/e.sock"]
    assert program_paths(words) == {script}


def test_the_words_of_an_engines_program_come_from_the_operator_alone():
    assert program_words({"IPNEXT_VLLM_COMMAND": "{python} '/opt/an engine.py' {directory}"}) == [
        *(sys.executable, "/opt/an engine.py", "{directory}")
    ]
    assert program_words({"IPNEXT_VLLM_PYTHON": sys.executable}) == (sys.executable,)
