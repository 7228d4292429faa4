"""A PgBouncer of a test's own, in transaction mode."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from process import free_port

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

CONFIG = """
[databases]
{databases}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
server_login_retry = 1
max_client_conn = 500
{settings}
"""


@contextmanager
def pgbouncer(
    databases: str, settings: str, conninfo: str, host: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Yields its port on the loopback and its process, once ``conninfo`` connects through it.

    :param databases: lines of its configuration
    :param settings: more of them
    :param conninfo: with ``{port}`` for the port
    :param host: that of a server behind it; the owner of a socket's folder can reach it
    """
    port = free_port()
    user = None
    if os.geteuid() == 0:
        # PgBouncer refuses to run as root.
        place = Path(host)
        user = place.owner() if place.is_absolute() else pwd.getpwnam("nobody").pw_name
    with tempfile.TemporaryDirectory(prefix="hyperfleet-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(CONFIG.format(databases=databases, port=port, settings=settings))
        process = subprocess.Popen([str(PROGRAM), "-q", str(config)], user=user, group=None)
        try:
            end = time.monotonic() + 10
            while True:
                try:
                    psycopg.connect(conninfo.format(port=port)).close()
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None and time.monotonic() < end
                    time.sleep(0.05)
            yield port, process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(10)
