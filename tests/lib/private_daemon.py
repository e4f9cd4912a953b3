# SPDX-License-Identifier: Apache-2.0
"""private_daemon.py - private_daemon.c for tests in Python: a skvcd in a folder of its own, gone
with the test even when that is killed.  Who imports it finds what was built, and the package skvc.
"""
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("SKVC_BUILD") or os.path.join(ROOT, "build/release"))
os.environ.setdefault("SKVC_LIBRARY", os.path.join(BUILD, "lib/libskvc.so.0"))
sys.path.insert(0, os.path.join(ROOT, "client-lib/python"))

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def die_with_me():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Daemon:
    """Runs when made; overrides are "section.key=value"."""

    def __init__(self, *overrides):
        self.dir = tempfile.mkdtemp(prefix="skvcd-test-", dir="/tmp")
        self.socket, self.bus = self.dir + "/sock", self.dir + "/bus"
        self.overrides = overrides
        self.process = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self, seconds=60):
        conf = self.dir + "/skvcd.conf"
        open(conf, "w").close()
        command = [BUILD + "/bin/skvcd", "-c", conf]
        for o in ("daemon.socket=" + self.socket, "daemon.bus_socket=" + self.bus,
                  "daemon.state_dir=" + self.dir + "/state", "daemon.cpu_workers=1",
                  "host.pool=64M", "host.lock_memory=no") + self.overrides:
            command += ["-o", o]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_me)
        until = time.monotonic() + seconds
        # The bus comes last: when it is there, start-up is over.
        while not (self.listens(self.bus, socket.SOCK_STREAM) and
                   self.listens(self.socket, socket.SOCK_SEQPACKET)):
            if self.process.poll() is not None:
                raise RuntimeError(f"skvcd ended with status {self.process.returncode}")
            if time.monotonic() > until:
                raise RuntimeError(f"skvcd did not start within {seconds} s")
            time.sleep(0.01)

    @staticmethod
    def listens(path, kind):
        with socket.socket(socket.AF_UNIX, kind) as s:
            return s.connect_ex(path) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; its exit status, None when it had to be killed.  Removes the folder."""
        status = None
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                status = self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
        return status
