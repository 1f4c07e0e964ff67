"""Certificates of a run, made by openssl(1) in a directory of the run."""

from .procs import Unusable, run

# openssl takes milliseconds; RSA keys sometimes a second.
OPENSSL_WAIT_S = 60

# Key types by the names the suites use, as arguments of `openssl req -newkey`.
KEYS = {
    "ecdsa": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "rsa": ["-newkey", "rsa:2048"],
    "ed25519": ["-newkey", "ed25519"],
}

# Days every certificate is valid.
DAYS = "30"


def openssl(*argv):
    code, _, errors = run(["openssl", *argv], OPENSSL_WAIT_S)
    if code != 0:
        raise Unusable(f"openssl {' '.join(map(str, argv))}: {errors}")


class Authority:
    """A CA; its files are NAME.pem and NAME.key."""

    def __init__(self, directory, name):
        self.directory = directory
        self.name = name
        self.pem = directory / f"{name}.pem"
        self.key = directory / f"{name}.key"
        openssl(
            "req", "-x509", *KEYS["ecdsa"], "-nodes", "-keyout", self.key, "-out", self.pem, "-days", DAYS,
            "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name, kind="ecdsa", names=(), client=False):
        """A leaf with NAME.pem and NAME.key in the CA's directory; returns both paths."""
        pem, key, request = (self.directory / f"{name}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.directory / f"{name}.ext"
        lines = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            f"extendedKeyUsage={'clientAuth' if client else 'serverAuth'}",
        ]
        if names:
            lines.append("subjectAltName=" + ",".join(f"DNS:{each}" for each in names))
        extensions.write_text("\n".join(lines) + "\n")
        openssl("req", *KEYS[kind], "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self.key, "-CAcreateserial", "-days", DAYS,
            "-extfile", extensions, "-out", pem,
        )  # fmt: skip
        return pem, key
