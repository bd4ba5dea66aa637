"""Check the commands, ssh settings and warnings of docs/remote.md with a real OpenSSH server on loopback."""

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import PROJECT, free_port, git, run, wait_until

pytestmark = pytest.mark.slow

DOCUMENT = (PROJECT / "docs/remote.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
SSH_CONFIG, AUTHORIZED_KEY = (text for language, text in BLOCKS if not language)
ADDRESS = "ssh://storage/srv/dvc/mnist-autoencoder"
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


class Server:
    """The test's own sshd, set up as docs/remote.md describes, and the home folder of a user who may log in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"  # the remote's content; DVC creates it
        self.home = folder / "home"
        self.port = free_port()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.process: subprocess.Popen[bytes] | None = None

        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.host_key = new_key(folder / "host_key")
        user_key = new_key(self.home / ".ssh/id_ed25519")
        (line,) = AUTHORIZED_KEY.splitlines()
        options, _, _ = line.partition(" ssh-ed25519 ")
        (folder / "authorized_keys").write_text(f"{options.replace(':22', f':{self.port}')} {user_key}\n")
        account = f"User {self.user}\n    Port {self.port}"
        here = "Host storage.example.com\n    HostName 127.0.0.1\n\n"  # in place of DNS
        (self.home / ".ssh/config").write_text(here + SSH_CONFIG.replace("User dvc", account))
        self.trust(self.host_key)

        settings = {
            "ListenAddress": "127.0.0.1",
            "Port": self.port,
            "HostKey": folder / "host_key",
            "AuthorizedKeysFile": folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",  # temporary folders are in one that everybody may write to
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "Subsystem": "sftp internal-sftp",
            "LogLevel": "VERBOSE",
        }
        (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))

    def trust(self, public_key: str) -> None:
        """Write this key of the server to known_hosts, hashed as Debian's ssh does it."""
        path = self.home / ".ssh/known_hosts"
        path.write_text(f"[127.0.0.1]:{self.port} {public_key}\n")
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # as sshd's service does; only root's sshd requires it
        program = shutil.which("sshd", path=SYSTEM_PATH)
        assert program is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([program, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log)
        wait_until(lambda: "Server listening" in self.log(), 10)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
            (self.folder / "log").unlink()

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def dvc(self, folder: Path, command: str, *more: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command from docs/remote.md as this server's user, with the arguments `more` added."""
        assert f"dvc {command}" in DOCUMENT
        arguments = [*shlex.split(command.replace(ADDRESS, f"ssh://storage{self.files}")), *more]
        return run(folder, "dvc", *arguments, ok=ok, HOME=str(self.home), SSH_AUTH_SOCK="")


def new_key(path: Path) -> str:
    """Write a private key and return the public one."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().strip()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed: make setup-cluster")
    for program, package in {"sshd": "openssh-server", "ssh-keygen": "openssh-client"}.items():
        if shutil.which(program, path=SYSTEM_PATH) is None:
            pytest.skip(f"{program} is not installed; Debian's package is {package}")
    server = Server(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def mine(toy: Path, tmp_path: Path) -> Path:
    """Return a clone with results and cache and with an origin. No DVC remote is configured."""
    folder = shutil.copytree(toy, tmp_path / "mine", symlinks=True)
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "team.git")
    git(folder, "remote", "add", "origin", str(tmp_path / "team.git"))
    git(folder, "push", "-q", "origin", "main")
    return folder


@pytest.fixture
def yours(mine: Path, server: Server, tmp_path: Path) -> Path:
    """Return a fresh clone, with its own cache, after `mine` has pushed to git and to the remote."""
    configure(mine, server)
    server.dvc(mine, "push")
    return clone(tmp_path, "yours")


def configure(folder: Path, server: Server) -> None:
    """Configure the remote and commit that, as one team member does once."""
    server.dvc(folder, f"remote add -d storage {ADDRESS}")
    server.dvc(folder, "remote modify storage verify true")
    command = "git commit -m 'A DVC remote' .dvc/config"
    assert command in DOCUMENT
    git(folder, *shlex.split(command)[1:])
    git(folder, "push", "-q", "origin", "main")


def clone(folder: Path, name: str) -> Path:
    git(folder, "clone", "-q", str(folder / "team.git"), name)
    assert not (folder / name / ".dvc/cache").exists()
    return folder / name


def results(folder: Path) -> dict[str, bytes]:
    """Return {path: bytes} of all files of a clone that a pipeline run writes."""
    paths = [path for name in ("data", "models", "reports") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_pulled_results_need_not_be_computed(mine: Path, yours: Path, server: Server) -> None:
    """After `dvc pull` every file has the same bytes, and `dvc repro` runs nothing."""
    assert "models/polynomial.safetensors" not in results(yours)
    server.dvc(yours, "pull")
    assert results(yours) == results(mine)
    assert "models/polynomial.safetensors" in results(yours)
    said = server.dvc(yours, "repro").stdout
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said
    assert git(yours, "status", "--porcelain") == ""


def test_the_run_cache_is_transferred_only_on_request(mine: Path, yours: Path, server: Server) -> None:
    """Push and pull transfer the run-cache only with --run-cache."""
    assert not (server.files / "runs").exists()
    server.dvc(mine, "push", "--run-cache")
    assert (server.files / "runs").is_dir()
    server.dvc(yours, "pull")
    assert not (yours / ".dvc/cache/runs").exists()
    server.dvc(yours, "pull", "--run-cache")
    assert (yours / ".dvc/cache/runs").is_dir()


def test_only_the_address_of_a_remote_is_in_git(mine: Path, server: Server) -> None:
    """Git holds no user, key, port or host of the server, and ignores settings made with --local."""
    before = git(mine, "rev-parse", "HEAD").strip()
    configure(mine, server)
    server.dvc(mine, "remote modify --local storage", "user", "somebody")
    assert "somebody" in (mine / ".dvc/config.local").read_text()
    assert git(mine, "status", "--porcelain") == ""
    lines = git(mine, "diff", "--unified=0", before, "HEAD").splitlines()
    added = [line[1:].strip() for line in lines if re.match(r"\+[^+]", line)]
    assert added == [
        "remote = storage",
        "['remote \"storage\"']",
        f"url = ssh://storage{server.files}",
        "verify = true",
    ]


def test_the_trials_of_a_sweep_can_be_pulled(mine: Path, yours: Path, server: Server) -> None:
    """In another clone `dvc exp apply` restores a pulled trial's results, and `dvc repro` and a sweep run nothing."""
    sweep = ["pipeline.sweep", "-S", "train.seed=1"]
    run(mine, *sweep, PIPELINE_TRACKING="0")
    assert "1 file uploaded" in server.dvc(mine, "exp push origin").stdout
    (trial,) = git(mine, "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps/*/*/*").split()
    assert trial in server.dvc(yours, "exp list origin").stdout
    server.dvc(yours, "exp pull origin")
    server.dvc(yours, "pull")
    assert "1 trials, 1 done, 0 to run" in run(yours, *sweep, PIPELINE_TRACKING="0").stdout
    for folder in (mine, yours):
        server.dvc(folder, "exp apply", trial)
    assert "seed: 1" in (yours / "params.yaml").read_text()
    assert results(yours) == results(mine)
    said = server.dvc(yours, "repro").stdout
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said


def test_a_server_with_another_host_key_gets_nothing(mine: Path, server: Server) -> None:
    """DVC stops before login if known_hosts has another key or none, even with StrictHostKeyChecking off."""
    configure(mine, server)
    config = server.home / ".ssh/config"
    config.write_text(f"Host *\n    StrictHostKeyChecking no\n\n{config.read_text()}")
    server.trust(new_key(server.folder / "other"))
    refused = server.dvc(mine, "push", ok=False)
    (server.home / ".ssh/known_hosts").unlink()
    unknown = server.dvc(mine, "push", ok=False)
    for done in (refused, unknown):
        assert done.returncode != 0
        assert "Host key is not trusted" in done.stderr
    assert "Accepted publickey" not in server.log()
    assert not server.files.exists()
    server.trust(server.host_key)
    server.dvc(mine, "push")
    assert "Accepted publickey" in server.log()


def test_without_the_jump_dvc_checks_no_host_key(mine: Path, server: Server) -> None:
    """Without the jump DVC pushes to an unknown host, as docs/remote.md warns. If this fails, drop the jump."""
    run(mine, "dvc", "remote", "add", "-d", "storage", f"ssh://127.0.0.1{server.files}")
    key = server.home / ".ssh/id_ed25519"
    for name, value in {"user": server.user, "port": str(server.port), "keyfile": str(key)}.items():
        run(mine, "dvc", "remote", "modify", "--local", "storage", name, value)
    (server.folder / "empty").mkdir()
    run(mine, "dvc", "push", HOME=str(server.folder / "empty"), SSH_AUTH_SOCK="")
    assert server.files.exists()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("another key", "Permission denied for user"), ("server down", "Connect call failed")],
)
def test_a_failed_pull_leaves_the_clone_unchanged(
    mine: Path, yours: Path, server: Server, trouble: str, message: str
) -> None:
    """A failed pull gives DVC's message and an error code, and after a fix the same command pulls everything."""
    key = server.home / ".ssh/id_ed25519"
    good = key.read_bytes()
    before = results(yours)
    if trouble == "server down":
        server.stop()
    else:
        new_key(key)
    done = server.dvc(yours, "pull", ok=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert results(yours) == before
    assert git(yours, "status", "--porcelain") == ""
    if trouble == "server down":
        server.start()
    else:
        key.write_bytes(good)
        key.with_suffix(".pub").unlink()
    server.dvc(yours, "pull")
    assert results(yours) == results(mine)


def test_a_file_damaged_in_the_remote_is_refused(mine: Path, yours: Path, server: Server, tmp_path: Path) -> None:
    """With `verify` DVC refuses the file, and without it DVC accepts the file, as docs/remote.md warns."""
    model = "models/polynomial.safetensors"
    content = results(mine)[model]
    (stored,) = [path for path in server.files.rglob("*") if path.is_file() and path.read_bytes() == content]
    stored.chmod(0o644)
    stored.write_bytes(content[:-1] + b"?")
    done = server.dvc(yours, "pull", ok=False)
    assert done.returncode != 0
    assert f"Checkout failed for following targets:\n{model}" in done.stderr
    assert model not in results(yours)

    careless = clone(tmp_path, "careless")
    run(careless, "dvc", "remote", "modify", "--local", "storage", "verify", "false")
    server.dvc(careless, "pull")
    assert results(careless)[model] != content

    assert "Everything is up to date." in server.dvc(mine, "push").stdout  # DVC only checks that the file exists
    stored.unlink()
    server.dvc(mine, "push")
    server.dvc(yours, "pull")
    assert results(yours) == results(mine)


def test_gc_deletes_what_its_clone_does_not_have(mine: Path, yours: Path, server: Server) -> None:
    """`gc` deletes other clones' experiments, as docs/remote.md warns, unless its recommended steps come first."""
    clean_up = "gc --workspace --all-commits --all-experiments --cloud"
    n_of_main = n_files(server.files)
    run(mine, "dvc", "exp", "run", "-n", "other-seed", "-S", "train.seed=1", "train", PIPELINE_TRACKING="0")
    server.dvc(mine, "exp push origin")
    assert n_files(server.files) == n_of_main + 1

    careful = clone(mine.parent, "careful")
    git(careful, "fetch", "--all")
    server.dvc(careful, "exp pull origin --all-commits")
    server.dvc(careful, clean_up, "--force")
    assert n_files(server.files) == n_of_main + 1

    assert "Removed 1 objects from remote." in server.dvc(yours, clean_up, "--dry").stdout
    server.dvc(yours, clean_up.removesuffix(" --cloud"), "--force")
    assert n_files(server.files) == n_of_main + 1
    server.dvc(yours, clean_up, "--force")
    assert n_files(server.files) == n_of_main
    server.dvc(yours, "pull")
    assert results(yours)["data/prepared/train.npy"] == results(mine)["data/prepared/train.npy"]


def n_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_the_settings_for_s3_are_accepted(tmp_path: Path) -> None:
    """DVC accepts the settings, and writes the name of the profile only to its local file, which is not shared."""
    git(tmp_path, "init", "-q")
    run(tmp_path, "dvc", "init", "-q")
    section = DOCUMENT[DOCUMENT.index("## On S3") : DOCUMENT.index("## Clean up")]
    commands = re.findall(r"dvc (remote [^#`\n]+)", section)
    assert len(commands) == 5
    for command in commands:
        run(tmp_path, "dvc", *shlex.split(command))
    assert "profile" not in (tmp_path / ".dvc/config").read_text()
    assert "profile = NAME" in (tmp_path / ".dvc/config.local").read_text()
