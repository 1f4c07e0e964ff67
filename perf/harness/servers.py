"""The servers under test: how each is configured for a workload, started, and asked for its version.

All of them: one worker on the server's core, X25519 and AES-128-GCM, tickets on, no access log, connections to the
origin kept alive where the server has that notion. Each peer is set up as its own manual would for speed; where a
default was changed, the comment says why.
"""

import os
import subprocess
from pathlib import Path

from . import workloads
from .procs import Child, Failed, free_port

# OpenSSL's names for the one TLS 1.3 suite and its TLS 1.2 siblings.
SUITES_13 = "TLS_AES_128_GCM_SHA256"
SUITES_12 = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"

# IANA's names of the same, for Hostward.
SUITES_IANA = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
]

# Key exchange. Up to TLS 1.2 OpenSSL wants the certificate's curve in the list too; X25519 is preferred and used.
GROUPS = {"1.3": "X25519", "1.2": "X25519:prime256v1"}

# Buffers of the bulk workloads, bytes. The first lever for bulk, so everyone who lets it be set gets the same.
BULK_BUFFER_BYTES = 64 * 1024


class Setting:
    """What a server needs to know of the run: binaries, certificates, the core, the directory for its files."""

    def __init__(self, directory, pki, programs, hostward, hostward_other, core, files):
        self.directory = Path(directory)
        self.pki = Path(pki)
        self.programs = Path(programs)
        self.hostward = Path(hostward)
        self.hostward_other = Path(hostward_other) if hostward_other else None
        self.core = core
        self.files = files

    def pem(self, host, name):
        return self.pki / f"host{host}" / name


class Server:
    """A server under test, running."""

    name = ""

    # Whether it speaks HTTP/2 to clients.
    http2 = False

    def __init__(self, setting, workload, origin_port):
        self.setting = setting
        self.workload = workload
        self.origin_port = origin_port
        self.port = free_port()
        self.directory = setting.directory / f"{workload.name}-{self.name}-{self.port}"
        self.directory.mkdir()
        argv = self.prepare()
        self.child = Child(self.name, argv, setting.core, self.directory / "log")
        self.child.await_port(self.port)

    def prepare(self):
        """Writes the configuration; returns the command line."""
        raise NotImplementedError

    @classmethod
    def available(cls, setting):
        """None, or why this server cannot take part."""
        return None

    @classmethod
    def version(cls, setting):
        """One line that says what was measured."""
        raise NotImplementedError

    def stop(self):
        self.child.stop()


class Nginx(Server):
    """nginx as HTTP proxy, the way Debian ships it, with a connection pool to the origin."""

    name = "nginx"
    http2 = True

    def prepare(self):
        # Bulk: bodies go through memory in 64 KiB steps. With nginx's defaults an upload, and a download to a slower
        # client, would take a detour through temporary files.
        bulk = """
    proxy_buffer_size 64k;
    proxy_buffers 4 64k;
    proxy_busy_buffers_size 128k;
    proxy_max_temp_file_size 0;
    proxy_request_buffering off;
    client_body_buffer_size 64k;""" if self.workload.bulk else ""
        hosts = "".join(self._host(host) for host in range(workloads.HOSTS))
        mask = "1" + "0" * self.setting.core
        config = nginx_frame(self.directory, self.setting.files) + f"""
worker_cpu_affinity {mask};
http {{
{nginx_temp_paths(self.directory)}
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_max_body_size 0;{bulk}
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ecdh_curve {GROUPS[self.workload.tls]};
    ssl_conf_command Ciphersuites {SUITES_13};
    ssl_ciphers {SUITES_12};
    ssl_session_tickets on;
    ssl_session_timeout 1h;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    upstream origin {{
        server 127.0.0.1:{self.origin_port};
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
{hosts}
}}
"""
        path = self.directory / "nginx.conf"
        path.write_text(config)
        return ["nginx", "-c", str(path), "-p", str(self.directory)]

    def _host(self, host):
        pem = self.setting.pem(host, f"{self.workload.key}.pem")
        verify = f"""
        ssl_verify_client on;
        ssl_client_certificate {self.setting.pem(host, "client-ca.pem")};""" if self.workload.mutual else ""
        options = " http2" if self.workload.http2 else ""
        options += " default_server backlog=4096" if host == 0 else ""
        forward = "grpc_pass grpc://origin" if self.workload.grpc else "proxy_pass http://origin"
        return f"""    server {{
        listen 127.0.0.1:{self.port} ssl{options};
        server_name host{host}.perf.test;
        ssl_certificate {pem};
        ssl_certificate_key {pem};{verify}
        location / {{ {forward}; }}
    }}
"""

    @classmethod
    def version(cls, setting):
        said = _say(["nginx", "-V"]).splitlines()
        tls = next((line for line in said if "OpenSSL" in line), "")
        return f"{said[0].removeprefix('nginx version: ')}, {tls}"


class Haproxy(Server):
    """HAProxy in HTTP mode, a crt-list with a CA per line, idle origin connections reused."""

    name = "haproxy"
    http2 = True

    def prepare(self):
        lines = []
        for host in range(workloads.HOSTS):
            pem = self.setting.pem(host, f"{self.workload.key}.pem")
            ca = self.setting.pem(host, "client-ca.pem")
            verify = f" [ca-file {ca} verify required]" if self.workload.mutual else ""
            lines.append(f"{pem}{verify} host{host}.perf.test\n")
        crt_list = self.directory / "crt-list"
        crt_list.write_text("".join(lines))
        bulk = f"    tune.bufsize {BULK_BUFFER_BYTES}\n" if self.workload.bulk else ""
        alpn = " alpn h2,http/1.1" if self.workload.http2 else ""
        proto = " proto h2" if self.workload.grpc else ""
        # Two descriptors a connection and some for itself.
        maxconn = (self.setting.files - 200) // 2
        path = self.directory / "haproxy.cfg"
        path.write_text(f"""global
    nbthread 1
    maxconn {maxconn}
{bulk}    ssl-default-bind-options ssl-min-ver TLSv1.2
    ssl-default-bind-ciphersuites {SUITES_13}
    ssl-default-bind-ciphers {SUITES_12}
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s
frontend clients
    bind 127.0.0.1:{self.port} ssl crt-list {crt_list} curves {GROUPS[self.workload.tls]} backlog 4096{alpn}
    default_backend origin
backend origin
    server origin 127.0.0.1:{self.origin_port}{proto}
""")
        return ["haproxy", "-db", "-f", str(path)]

    @classmethod
    def version(cls, setting):
        said = _say(["haproxy", "-vv"]).splitlines()
        tls = next((line for line in said if line.startswith("Running on OpenSSL version")), "")
        return f"{said[0]}; {tls}"


class Baseline(Server):
    """The tokio proxy of perf/baseline: bytes, one origin connection per client connection."""

    name = "baseline"

    # Bytes of each direction's copy buffer. The size that is best for bulk is the baseline's in every row, since a proxy
    # has one setting for all its traffic.
    buffer_bytes = BULK_BUFFER_BYTES

    def prepare(self):
        argv = [
            str(self.setting.programs / "perf-baseline"),
            f"--listen=127.0.0.1:{self.port}",
            f"--origin=127.0.0.1:{self.origin_port}",
            f"--pki={self.setting.pki}",
            f"--key={self.workload.key}",
            f"--buffer-bytes={self.buffer_bytes}",
        ]
        if self.workload.mutual:
            argv.append("--mutual")
        return argv

    @classmethod
    def version(cls, setting):
        return "perf/baseline of this tree: tokio + tokio-rustls, aws-lc-rs, mimalloc (versions in Cargo.lock)"


class Baseline8k(Baseline):
    """The baseline with tokio's own copy buffers: dearer for bulk, cheaper for connections that do little."""

    name = "baseline-8k"
    buffer_bytes = 8 * 1024


class Hostward(Server):
    """Hostward in tcp mode."""

    name = "hostward"
    mode = "tcp"
    pool = ""

    @property
    def scheme(self):
        return "tcp"

    @classmethod
    def binary(cls, setting):
        return setting.hostward

    def prepare(self):
        hosts = "".join(self._host(host) for host in range(workloads.HOSTS))
        suites = ", ".join(f'"{suite}"' for suite in SUITES_IANA)
        connections = (self.setting.files - 400) // 2
        path = self.directory / "hostward.toml"
        path.write_text(f"""[server]
listen = ["127.0.0.1:{self.port}"]
workers = 1
cpus = "{self.setting.core}"
state_dir = "{self.directory}/state"

[admin]
socket = "{self.directory}/admin.sock"

[tls]
groups = ["X25519"]
cipher_suites = [{suites}]

[limits]
connections_per_worker = {connections}
drain_timeout = "1s"

[origin.perf]
url = ["{self.scheme}://127.0.0.1:{self.origin_port}"]
{self.pool}{hosts}""")
        return [str(self.binary(self.setting)), "run", "-c", str(path)]

    def _host(self, host):
        pem = self.setting.pem(host, f"{self.workload.key}.pem")
        default = "default = true\n" if host == 0 else ""
        auth = f"""[hostname.client_auth]
mode = "require"
ca = ["{self.setting.pem(host, "client-ca.pem")}"]
""" if self.workload.mutual else ""
        return f"""
[[hostname]]
name = "host{host}.perf.test"
certificate = "{pem}"
private_key = "{pem}"
origin = "perf"
mode = "{self.mode}"
{default}{auth}"""

    @classmethod
    def available(cls, setting):
        binary = cls.binary(setting)
        if binary and os.access(binary, os.X_OK):
            return None
        return f"no binary at {binary}: build it (cargo build --release) or point --{cls.name} at it"

    @classmethod
    def version(cls, setting):
        return _say([str(cls.binary(setting)), "-V"]).splitlines()[0]


class HostwardHttp(Hostward):
    """Hostward in http mode: requests parsed, judged and rewritten, origin connections pooled."""

    name = "hostward-http"
    mode = "http"
    http2 = True
    # As many as nginx is given: 16 connections of 32 streams have 512 requests under way.
    pool = "idle_connections_per_worker = 512\n"

    @property
    def scheme(self):
        return "h2c" if self.workload.grpc else "http"


class HostwardOther(Hostward):
    """A second binary of Hostward, to compare two commits in the same run."""

    name = "hostward-other"

    @classmethod
    def binary(cls, setting):
        return setting.hostward_other


class HostwardHttpOther(HostwardHttp):
    """The second binary in http mode."""

    name = "hostward-http-other"

    @classmethod
    def binary(cls, setting):
        return setting.hostward_other


# In the order of the columns.
_KINDS = (Hostward, HostwardHttp, HostwardOther, HostwardHttpOther, Nginx, Haproxy, Baseline, Baseline8k)
ALL = {server.name: server for server in _KINDS}

# What is compared where the command line says nothing.
DEFAULT = ["hostward", "hostward-http", "nginx", "haproxy", "baseline"]


class Origin:
    """The static nginx and the upload sink behind every server, on the load's core."""

    def __init__(self, setting, core):
        self.directory = setting.directory / "origin"
        docroot = self.directory / "www"
        docroot.mkdir(parents=True)
        (docroot / "1k").write_bytes(bytes(i % 251 for i in range(1024)))
        (docroot / "10m").write_bytes(bytes(i % 251 for i in range(251)) * (workloads.BULK_BYTES // 251 + 1))
        os.truncate(docroot / "10m", workloads.BULK_BYTES)
        self.port = free_port()
        path = self.directory / "nginx.conf"
        path.write_text(nginx_frame(self.directory, setting.files) + f"""
http {{
{nginx_temp_paths(self.directory)}
    access_log off;
    sendfile on;
    open_file_cache max=16;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
        root {docroot};
    }}
}}
""")
        argv = ["nginx", "-c", str(path), "-p", str(self.directory)]
        self.nginx = Child("origin", argv, core, self.directory / "log")
        self.sink_port = free_port()
        argv = [str(setting.programs / "perf-sink"), f"--listen=127.0.0.1:{self.sink_port}"]
        self.sink = Child("sink", argv, core, self.directory / "sink.log")
        self.grpc_port = free_port()
        argv = [str(setting.programs / "perf-grpc"), f"--listen=127.0.0.1:{self.grpc_port}"]
        self.grpc = Child("grpc", argv, core, self.directory / "grpc.log")
        self.nginx.await_port(self.port)
        self.sink.await_port(self.sink_port)
        self.grpc.await_port(self.grpc_port)

    def port_for(self, workload):
        if workload.grpc:
            return self.grpc_port
        return self.sink_port if workload.path == "/upload" else self.port

    def cpu_s(self):
        return self.nginx.cpu_s() + self.sink.cpu_s() + self.grpc.cpu_s()


def nginx_frame(directory, files):
    """The top of every nginx configuration here: one worker, nothing outside `directory` touched."""
    # A worker started by root would step down to a user who may not enter the run's private directory.
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"""{user}daemon off;
pid {directory}/pid;
error_log {directory}/error.log warn;
worker_processes 1;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}"""


def nginx_temp_paths(directory):
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(f"    {kind}_temp_path {directory}/{kind};" for kind in kinds)


def _say(argv):
    """What a program says about itself, stdout and stderr together."""
    try:
        said = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10, check=False, text=True
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Failed(f"{' '.join(argv)}: {e}") from e
    return said.strip() or "no version given"
