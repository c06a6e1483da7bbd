"""MyProxy: retrievals and staging, ours against the C clients and PyPI's MyProxyClient; and chain verification.

The same real server, the same stored credential, the same run; rounds alternate, and the median round counts. Clients
and server share this machine's cores: ratios say more than rates.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest
from bench.record import record
from support.myproxy_server import ServerProcess, start_debian
from support.need import need_program
from support.pki import Pki

from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.myproxy import policy
from airpanda.myproxy.client import MyProxyClient
from airpanda.myproxy.staging import stage
from airpanda.x509.certificates import PrivateKey
from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy, make_request, new_key
from airpanda.x509.trust import TrustStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
HOUR = timedelta(hours=1)
ROUNDS = 3
CLIENTS = (1, 4, 16)
EACH = {"ours": {1: 30, 4: 60, 16: 64}, "c": {1: 5, 4: 12, 16: 16}, "myproxyclient": {1: 12, 4: 32, 16: 48}}
BAR_C, BAR_MYPROXYCLIENT, BAR_CPU_MS = 12.0, 2.5, 3.0
PINNED = ("MyProxyClient==2.2.0", "pyOpenSSL==24.0.0", "cryptography==42.0.8")  # it breaks with later pyOpenSSL
PASSPHRASE: Secret[str] = Secret("correct-horse-battery")
THEIRS = """
import json, sys, time
from myproxy.client import MyProxyClient
arguments = json.loads(sys.argv[1])
client = MyProxyClient(hostname="localhost", **arguments["server"])
def once():
    client.logon(arguments["user"], arguments["passphrase"], lifetime=3600, nBitsForKey=2048)
once()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(arguments["n"]):
    once()
print("done", flush=True)
"""


class Ready:
    """Keys with their requests, made before the clock starts: what a pool has in store. Each is handed out once."""

    def __init__(self) -> None:
        self._keys: deque[tuple[PrivateKey, bytes]] = deque()

    def fill(self, n: int) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            keys = list(pool.map(lambda _: new_key(), range(n)))
        self._keys.extend((key, make_request(key)) for key in keys)

    def take(self) -> tuple[PrivateKey, bytes]:
        return self._keys.popleft()


@dataclass(frozen=True)
class Rig:
    server: ServerProcess
    user: str
    python: str

    def ours(self, clients: int, n: int) -> tuple[float, float]:
        """Seconds on the clock and of our CPU for n retrievals; keys from stock."""
        keys = Ready()
        keys.fill(n)
        client = MyProxyClient(
            "localhost",
            self.server.port,
            ca_dir=self.server.pki.ca_dir,
            keys=keys,  # type: ignore[arg-type]  # all of a pool that is used
            max_concurrent=clients,
        )

        def once(_: int) -> None:
            client.get(self.user, PASSPHRASE, lifetime=HOUR)

        with ThreadPoolExecutor(clients) as pool:
            began, cpu = time.perf_counter(), time.process_time()
            list(pool.map(once, range(n)))
            return time.perf_counter() - began, time.process_time() - cpu

    def c(self, clients: int, n: int) -> tuple[float, float]:
        """The same by ``myproxy-logon`` processes."""
        argv = [need_program("myproxy-logon", "myproxy"), "-S", "-l", self.user, "-t", "1"]
        environment = self.server.environment()

        def once(number: int) -> None:
            # A file of its own: the program replaces what it is told to write, as root even a device.
            subprocess.run(
                [*argv, "-o", str(self.server.pki.root / f"logon-{number}")],
                input=PASSPHRASE.reveal().encode(),
                env=environment,
                check=True,
                timeout=120,
                capture_output=True,
            )

        with ThreadPoolExecutor(clients) as pool:
            began, cpu = time.perf_counter(), os.times()
            list(pool.map(once, range(n)))
            seconds, now = time.perf_counter() - began, os.times()
            return seconds, now.children_user + now.children_system - cpu.children_user - cpu.children_system

    def myproxyclient(self, clients: int, n: int) -> tuple[float, float]:
        """The same by MyProxyClient, in one process for each client; starting them is not counted."""
        host = ProxyCredential.from_files(*self.server.pki.host())
        arguments = {
            "server": {
                "port": self.server.port,
                "serverDN": host.identity,
                "caCertDir": str(self.server.pki.ca_dir),
            },
            "user": self.user,
            "passphrase": PASSPHRASE.reveal(),
            "n": n // clients,
        }
        argv = [self.python, "-W", "ignore", "-c", THEIRS, json.dumps(arguments)]
        with contextlib.ExitStack() as stack:
            started = [_Conversation(stack, argv) for _ in range(clients)]
            for process in started:
                process.expect("ready")
            began = time.perf_counter()
            for process in started:
                process.go()
            for process in started:
                process.expect("done")
            return time.perf_counter() - began, 0.0


class _Conversation:
    """A process that says when it is ready, waits for us, and says when it is done."""

    def __init__(self, stack: contextlib.ExitStack, argv: list[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(self._process)
        stack.callback(self._process.kill)

    def expect(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{word}\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    venv = tmp_path_factory.mktemp("myproxyclient")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PINNED], check=True, timeout=300)
    pki = Pki(tmp_path_factory.mktemp("pki"))
    with start_debian(pki) as server:
        user = "bench"  # unnamed: MyProxyClient knows no credential names
        proxy = create_proxy(ProxyCredential.from_files(*pki.user("alice")), lifetime=12 * HOUR, now=utcnow())
        server.client("alice").store(user, proxy, PASSPHRASE, retrieval_lifetime=HOUR)
        yield Rig(server, user, str(venv / "bin/python"))


def medians(
    contestants: dict[str, Callable[[int, int], tuple[float, float]]], clients: int
) -> dict[str, tuple[float, float]]:
    """Per second, and CPU milliseconds of each, by contestant; rounds alternate between them."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            n = EACH[name][clients]
            seconds, used = run(clients, n)
            rates[name].append(n / seconds)
            cpu[name].append(used / n * 1000)
    return {name: (statistics.median(rates[name]), statistics.median(cpu[name])) for name in contestants}


@pytest.mark.parametrize("clients", CLIENTS)
def test_retrievals(rig: Rig, clients: int) -> None:
    found = medians({"ours": rig.ours, "c": rig.c, "myproxyclient": rig.myproxyclient}, clients)
    (ours, cpu_ms), (c, c_cpu_ms), (theirs, _) = found["ours"], found["c"], found["myproxyclient"]
    how = f"{clients} clients, keys and requests in stock, RSA-2048, median of {ROUNDS} rounds; server on these cores"
    name = f"myproxy.retrievals.{clients}_clients"
    bars = {"bar_times_c": BAR_C, "bar_times_myproxyclient": BAR_MYPROXYCLIENT} if clients == 4 else {}
    record(name, ours, "1/s", against={"myproxy-logon": round(c, 2), **bars}, ratio=ours / c, conditions=how)
    record(
        f"{name}.over_myproxyclient", ours, "1/s", against={PINNED[0]: round(theirs, 2)}, ratio=ours / theirs,
        conditions=f"{how}; MyProxyClient in one process per client",
    )  # fmt: skip
    record(
        f"{name}.client_cpu", cpu_ms, "ms", against={"myproxy-logon": round(c_cpu_ms, 1), "bar": BAR_CPU_MS},
        ratio=cpu_ms / c_cpu_ms, conditions=how,
    )  # fmt: skip
    print(f"\n{clients} clients: ours {ours:.1f}/s ({cpu_ms:.2f} ms CPU), C {c:.1f}/s, MyProxyClient {theirs:.1f}/s")


def test_staging(rig: Rig) -> None:
    """Our STORE with INFO and its comparison, a fresh key each, against ``myproxy-init`` (PUT: the server's key)."""
    own = ProxyCredential.from_files(*rig.server.pki.user("alice"))
    client, retriever = rig.server.client("alice"), rig.server.pki.dn("pilot")
    argv = [need_program("myproxy-init", "myproxy"), "-S", "-l", "bench", "-k", "init", "-x"]
    argv += ["-r", policy.exactly(retriever), "-c", "5", "-t", "1"]

    def ours() -> None:
        stage(client, own, retriever_dn=retriever, lifetime=5 * HOUR)

    def theirs() -> None:
        environment = rig.server.environment("alice")
        subprocess.run(
            argv, input=PASSPHRASE.reveal().encode(), env=environment, check=True, timeout=120, capture_output=True
        )

    times: dict[str, list[float]] = {"ours": [], "c": []}
    for _ in range(8):
        for name, run in (("ours", ours), ("c", theirs)):
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1000)
    mine, c = (statistics.median(times[name]) for name in ("ours", "c"))
    how = "stage(): fresh RSA-2048 key, STORE and INFO; one client, median of 8"
    record("myproxy.staging", mine, "ms", against={"myproxy-init": round(c, 1)}, ratio=mine / c, conditions=how)
    print(f"\nstaging: ours {mine:.0f} ms, myproxy-init {c:.0f} ms")


def test_verification_of_a_chain_of_three(rig: Rig) -> None:
    own = ProxyCredential.from_files(*rig.server.pki.user("alice"))
    proxy = own
    for _ in range(2):
        proxy = create_proxy(proxy, lifetime=HOUR, now=utcnow())
    trust, now = TrustStore.from_directory(rig.server.pki.ca_dir), utcnow()
    assert len(proxy.certificates) == 3
    pem = proxy.to_pem().reveal()

    def per_second(run: Callable[[], object]) -> float:
        n, began = 0, time.process_time()
        while time.process_time() - began < 2:
            run()
            n += 1
        return n / (time.process_time() - began)

    verified = per_second(lambda: verify_chain(proxy.certificates, trust=trust, now=now))
    read = per_second(lambda: ProxyCredential.from_pem(pem))
    record("x509.verify_chain_of_3", verified, "1/s", conditions="one core, parsed certificates, trust store in memory")
    record("x509.read_proxy_file", read, "1/s", conditions="one core: 3 certificates and an RSA-2048 key, from PEM")
    print(f"\nchain of 3: {verified:.0f}/s verified, {read:.0f}/s read")
