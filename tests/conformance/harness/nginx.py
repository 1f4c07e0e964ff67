"""nginx from Debian as a peer that a suite is tried against."""

import socket

from .procs import Program, Unusable, find


class Nginx:
    """HTTP/2 over TLS in front of an origin. `servers` are triples: name, more lines of its server block, its location's lines."""

    def __init__(self, directory, identity, servers):
        program = find("nginx")
        if not program:
            raise Unusable("nginx is not installed")
        directory.mkdir()
        # nginx cannot say which port the kernel chose: take one that is free now.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = ("127.0.0.1", port)
        temporary = "\n".join(
            f"    {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        blocks = "\n".join(
            f"""    server {{
        listen 127.0.0.1:{port} ssl http2;
        server_name {name};
        ssl_certificate {identity[0]};
        ssl_certificate_key {identity[1]};
        client_max_body_size 0;
        {more}
        location / {{ {location} }}
    }}"""
            for name, more, location in servers
        )
        config = directory / "nginx.conf"
        config.write_text(f"""daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{ }}
http {{
{temporary}
    access_log off;
{blocks}
}}
""")
        self.program = Program("nginx", [program, "-e", "stderr", "-c", config, "-p", directory], directory / "log")
        self.program.await_ready(self._accepts)

    def _accepts(self):
        try:
            socket.create_connection(self.address, timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self):
        self.program.stop()
