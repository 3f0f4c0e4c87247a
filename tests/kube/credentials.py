"""Credentials of the double: a certificate, tokens, and rights of service accounts.

- The certificate is made at start and signed by itself; clients trust it as their authority.
- The token of the kubeconfig may do anything.
- A service account may do what roles bound to it in its namespace allow, and nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.kube.api import Object, Store

NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
Account = tuple[str, str]
"""Namespace and name of a service account; both empty for the administrator."""
ADMINISTRATOR: Account = ("", "")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to be authorized."""

    verb: str
    group: str
    resource: str
    """Plural name, with a slash and the subresource where there is one."""
    namespace: str
    name: str


class Credentials:
    """The files and tokens of one server."""

    def __init__(self, folder: Path, addresses: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = folder / "ca.crt"
        self.key = folder / "server.key"
        certificate, key = _certificate(addresses)
        self.authority.write_bytes(certificate)
        self.key.touch(mode=0o600)
        self.key.write_bytes(key)
        self.admin_token = secrets.token_hex(16)
        self._folder = folder
        self._accounts = {self.admin_token: ADMINISTRATOR}
        self._tokens: dict[Account, str] = {}

    def account(self, namespace: str, name: str) -> Path:
        """Return the directory for a service account's pods: ca.crt, namespace, token."""
        place = self._folder / "accounts" / namespace / name
        account = (namespace, name)
        if account not in self._tokens:
            place.mkdir(parents=True, exist_ok=True)
            token = self._tokens[account] = secrets.token_hex(16)
            self._accounts[token] = account
            (place / "token").write_text(token)
            (place / "namespace").write_text(namespace)
            (place / "ca.crt").write_bytes(self.authority.read_bytes())
            # Pods have users of their own; the umask of this process must not keep them out.
            place.chmod(0o755)
            for path in place.iterdir():
                path.chmod(0o644)
        return place

    def identify(self, header: str) -> Account | None:
        """Return the account of an Authorization header, or None."""
        return self._accounts.get(header.removeprefix("Bearer ").strip())


def allows(store: Store, account: Account, request: Request) -> bool:
    """Return True if the account may do what the request asks for."""
    if account == ADMINISTRATOR:
        return True
    for binding in store.list("rolebindings", request.namespace or "-"):
        subjects = binding.get("subjects") or []
        if not any(_is_subject(subject, account, binding) for subject in subjects):
            continue
        role = store.get("roles", request.namespace, binding["roleRef"]["name"]) or {}
        if any(_permits(rule, request) for rule in role.get("rules") or []):
            return True
    return False


def _is_subject(subject: Object, account: Account, binding: Object) -> bool:
    namespace = subject.get("namespace", binding["metadata"]["namespace"])
    return subject.get("kind") == "ServiceAccount" and account == (namespace, subject["name"])


def _permits(rule: Object, request: Request) -> bool:
    names = rule.get("resourceNames")
    return (
        bool({"*", request.verb} & set(rule.get("verbs", [])))
        and bool({"*", request.group} & set(rule.get("apiGroups", [])))
        and bool({"*", request.resource} & set(rule.get("resources", [])))
        and (not names or request.name in names)
    )


def _certificate(addresses: Iterable[str]) -> tuple[bytes, bytes]:
    """Return a certificate for the addresses, its own authority, and its key; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster double")])
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(pem), private
