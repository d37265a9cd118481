"""A real S3 server (SeaweedFS), and a place in it for each test. Without the server's program they are skipped."""

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

_SECONDS = 60  # until the server answers


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a server; it is stopped in the end."""
    pytest.importorskip("s3fs")
    program = Path(sys.executable).with_name("weed")
    program = str(program) if program.exists() else shutil.which("weed")
    if program is None:
        pytest.skip("SeaweedFS is not installed")
    root = tmp_path_factory.mktemp("seaweedfs")
    (root / "s3.json").write_text(
        '{"identities": [{"name": "tests", "credentials": [{"accessKey": "key", "secretKey": "secret"}],'
        ' "actions": ["Admin", "Read", "Write", "List"]}]}'
    )
    ports = iter(_free_ports(4))
    options = {"dir": root, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.volumeSizeLimitMB": 64, "filer": "true"}
    options |= {name: next(ports) for name in ("master.port", "volume.port", "filer.port")}
    options |= {"s3": "true", "s3.port": (port := next(ports)), "s3.config": root / "s3.json"}
    options |= {"s3.port.iceberg": 0, "s3.port.lance": 0}  # of no use here, and at fixed ports
    command = [program, "server", *(f"-{name}={value}" for name, value in options.items())]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/healthz", process, root / "log")
        yield url
    finally:
        process.kill()
        process.wait()


def _free_ports(count):
    """Return ports that nobody uses, nor those 10,000 higher: the server takes these as well."""
    found = []
    with ExitStack() as held:
        while len(found) < count:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + 10_000 > 65_535:
                continue
            try:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


def _wait(url, process, log):
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the S3 server does not answer: {log.read_text()[-2000:]}")


@pytest.fixture
def credentials(server, monkeypatch):
    """What a user would have in the environment."""
    values = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    monkeypatch.delenv("CAS_CHECKPOINT_STORE", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def url(credentials):
    """A place in a bucket with nothing in it."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("checkpoints", exist_ok=True)
    return f"s3://checkpoints/{uuid.uuid4().hex}"
