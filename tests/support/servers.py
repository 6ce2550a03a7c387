"""Real servers for Optuna's storages: on loopback, on a free port, each in a folder of its own.

Each is started by the test that needs it and can be killed and started again on its own data.
PostgreSQL and MariaDB refuse to run as root, so there they run as the users of their packages.
"""

import contextlib
import getpass
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import optuna
import pytest

# What each needs; `.ci/run` installs all of it.
NEEDS = {
    "postgresql": (("postgres", "initdb"), ("psycopg",)),
    "mariadb": (("mariadbd", "mariadb-install-db"), ("pymysql",)),
    "redis": (("redis-server",), ("redis",)),
    "grpc": ((), ("grpc", "google.protobuf")),
}
_SECONDS_TO_START = 60


def missing(kind):
    """Why a server of this kind cannot be had; ``None`` if it can."""
    programs, modules = NEEDS[kind]
    if absent := [p for p in programs if _program(p) is None]:
        return f"{kind}: no {', '.join(absent)} on this machine"
    for module in modules:
        try:
            __import__(module)
        except ImportError:
            return f"{kind}: no Python module {module}"
    return None


def require(reason):
    """Skips for this reason, but fails where nothing may be missing: in CI."""
    if reason is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


class Server:
    """One server and its data: ``start``, ``stop``, ``kill`` and start again.

    Args:
        kind: A key of ``NEEDS``.
        behind: URL of the storage that a gRPC proxy serves.
    """

    def __init__(self, kind, behind=None):
        self.kind, self._behind, self._process, self._opened = kind, behind, None, []
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix=f"glocal-{kind}-")
        self._user = _user(kind)
        if self._user:
            shutil.chown(self.folder, self._user)
        self._log = open(os.path.join(self.folder, "log"), "w+b")

    @property
    def url(self):
        """For Optuna; a new gRPC proxy object is made by `storage`."""
        return {
            "postgresql": f"postgresql+psycopg://optuna@127.0.0.1:{self.port}/postgres",
            "mariadb": f"mysql+pymysql://root@127.0.0.1:{self.port}/optuna",
            "redis": f"redis://127.0.0.1:{self.port}",
        }.get(self.kind)

    def storage(self):
        """A new storage object, as another process would open it; closed with the server."""
        if self.kind == "grpc":
            opened = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=self.port)
            close = opened.close
        elif self.kind == "redis":
            backend = optuna.storages.journal.JournalRedisBackend(self.url)
            opened, close = optuna.storages.JournalStorage(backend), backend._redis.close
        else:
            opened = optuna.storages.get_storage(self.url)
            close = opened._backend.engine.dispose
        self._opened.append(close)
        return opened

    def start(self):
        """Starts it on its data, made if there is none, and waits until it answers."""
        data = os.path.join(self.folder, "data")
        if self.kind in ("postgresql", "mariadb") and not os.path.isdir(data):
            self._call(self._first_command(data))
        self._process = self._popen(self._command(data))
        deadline = time.monotonic() + _SECONDS_TO_START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not start:\n{self._tail()}")
            time.sleep(0.05)
        return self

    def stop(self, how=signal.SIGTERM):
        """Ends it, orderly unless told otherwise."""
        if self._process is None:
            return
        if self.kind == "postgresql" and how == signal.SIGTERM:
            how = signal.SIGINT  # fast shutdown; SIGTERM would wait for all clients to leave
        self._process.send_signal(how)
        self._process.wait(30)
        self._process = None

    def kill(self):
        """Ends it without a word to anybody."""
        if self.kind == "postgresql":
            # An immediate shutdown: its children must go, too, or the port stays taken.
            self.stop(signal.SIGQUIT)
        else:
            self.stop(signal.SIGKILL)

    def close(self):
        """Ends it and removes its data."""
        for close in self._opened:
            close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _first_command(self, data):
        if self.kind == "postgresql":
            return [_program("initdb"), "-D", data, "-U", "optuna", "-A", "trust", "-E", "UTF8",
                    "--locale=C", "--no-sync"]  # fmt: skip
        return [_program("mariadb-install-db"), "--no-defaults", f"--datadir={data}",
                "--auth-root-authentication-method=normal", "--skip-test-db",
                *([f"--user={self._user}"] if self._user else [])]  # fmt: skip

    def _command(self, data):
        port = str(self.port)
        if self.kind == "postgresql":
            settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "",
                        "fsync": "off", "max_connections": "200"}  # fmt: skip
            options = [part for k, v in settings.items() for part in ("-c", f"{k}={v}")]
            return [_program("postgres"), "-D", data, "-p", port, *options]
        if self.kind == "mariadb":
            return [_program("mariadbd"), "--no-defaults", f"--datadir={data}", f"--port={port}",
                    "--bind-address=127.0.0.1", f"--socket={data}/s", f"--pid-file={data}/pid",
                    "--innodb-flush-log-at-trx-commit=2", "--skip-name-resolve"]  # fmt: skip
        if self.kind == "redis":
            return [_program("redis-server"), "--port", port, "--bind", "127.0.0.1",
                    "--dir", self.folder, "--save", "", "--appendonly", "yes"]  # fmt: skip
        code = (
            "import sys, optuna.storages as s\n"
            "s.run_grpc_proxy_server(s.get_storage(sys.argv[1]), host='127.0.0.1', "
            "port=int(sys.argv[2]))"
        )
        return [sys.executable, "-W", "ignore", "-c", code, self._behind, port]

    def _answers(self):
        try:
            if self.kind == "postgresql":
                import psycopg

                psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5).close()
            elif self.kind == "mariadb":
                import pymysql

                with pymysql.connect(host="127.0.0.1", port=self.port, user="root") as connection:
                    connection.cursor().execute("CREATE DATABASE IF NOT EXISTS optuna")
            elif self.kind == "redis":
                import redis

                with redis.Redis.from_url(self.url) as client:
                    client.ping()
            else:
                proxy = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=self.port)
                proxy.wait_server_ready(timeout=5)
                proxy.close()
        except Exception:  # each driver has its own for "not yet"
            return False
        return True

    def _popen(self, command):
        as_user = {"user": self._user, "extra_groups": []} if self._user else {}
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            cwd=self.folder, **as_user,
        )  # fmt: skip

    def _call(self, command):
        if self._popen(command).wait(_SECONDS_TO_START):
            raise RuntimeError(f"{command[0]} failed:\n{self._tail()}")

    def _tail(self):
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]


def free_port():
    """A port of loopback that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _program(name):
    """Debian keeps PostgreSQL's programs, and servers in general, out of users' PATH."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *folders])
    return shutil.which(name, path=path)


def _user(kind):
    """The user that a server runs as; ``None``: our own."""
    if kind not in ("postgresql", "mariadb") or getpass.getuser() != "root":
        return None
    return {"postgresql": "postgres", "mariadb": "mysql"}[kind]
