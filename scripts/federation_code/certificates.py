"""Certificates and keys: made once, never overwritten, readable by their owner alone.

The package ``cryptography`` comes with Flower.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils_.errors import UserError

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
SITE_KEY, SITE_PUBLIC = "site.key", "site.pub"
CODE_KEY, CODE_PUBLIC = "code.key", "code.pub"
OWNER_ONLY, OWNER_FOLDER, ANYBODY_READS = 0o600, 0o700, 0o644
LOOPBACK = ("localhost", "127.0.0.1")  # the proxy reaches SuperLink by these


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that is not there yet, with its mode from the first byte on.

    Raises:
        UserError: it is there.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise UserError(
            f"{path}: exists, and a key is never overwritten; name a new folder, or move it away"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    path.chmod(mode)  # whatever umask says


def refuse_existing(paths: Sequence[Path]) -> None:
    """Stop before the first file is written where one is there.

    Raises:
        UserError: one of them is there.
    """
    for path in paths:
        if path.exists():
            raise UserError(
                f"{path}: exists, and is never overwritten; name a new folder, or move it away"
            )


def make_authority(folder: Path, *, days: int) -> None:
    """Write ``ca.key`` and ``ca.crt``: who signs the server's certificates."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _curve_key()
    own = _name("FedNML federation")
    usage = x509.KeyUsage(
        **dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True),
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    )
    draft = _draft(own, own, key.public_key(), days)
    draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    draft = draft.add_extension(usage, critical=True)
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = draft.add_extension(identity, critical=False).sign(key, hashes.SHA384())
    write_new(folder / CA_KEY, _pem(key), mode=OWNER_ONLY)
    write_new(folder / CA_CERTIFICATE, _pem_of(certificate), mode=ANYBODY_READS)


def make_server_certificate(folder: Path, hosts: Sequence[str], *, days: int) -> None:
    """Write ``server.key`` and ``server.crt`` for names and addresses, and for loopback.

    Raises:
        UserError: there is no authority in the folder, or it is another's.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority_key, authority = _authority(folder)
    key = _curve_key()
    names = x509.SubjectAlternativeName(
        [_alternative(h) for h in dict.fromkeys([*hosts, *LOOPBACK])]
    )
    above = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    draft = _draft(_name(hosts[0]), authority.subject, key.public_key(), days)
    for extension, critical in (
        (names, False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), False),
    ):
        draft = draft.add_extension(extension, critical=critical)
    certificate = draft.sign(authority_key, hashes.SHA384())
    write_new(folder / SERVER_KEY, _pem(key), mode=OWNER_ONLY)
    write_new(folder / SERVER_CERTIFICATE, _pem_of(certificate), mode=ANYBODY_READS)


def make_site_key(folder: Path) -> None:
    """Write ``site.key`` and ``site.pub``, by which SuperLink knows a site."""
    _write_pair(folder, (SITE_KEY, SITE_PUBLIC), _curve_key())


def make_code_key(folder: Path) -> None:
    """Write ``code.key`` and ``code.pub``, with which code is signed that sites run."""
    from cryptography.hazmat.primitives.asymmetric import ed25519

    _write_pair(folder, (CODE_KEY, CODE_PUBLIC), ed25519.Ed25519PrivateKey.generate())


def read_public_key(path: Path) -> bytes:
    """A site's public key in OpenSSH's form, as it is to be registered.

    Raises:
        UserError: the file holds something else, such as a private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        text = path.read_bytes()
        key = serialization.load_ssh_public_key(text)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: no public key; a site makes one with new-key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError(f"{path}: Flower takes keys of NIST curves only; make one with new-key")
    return text


def _authority(folder: Path) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        return key, x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: lacks a readable {CA_KEY} and {CA_CERTIFICATE}; make them with init"
        ) from error


def _curve_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _draft(subject: Any, issuer: Any, key: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.timezone.utc)
    draft = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    draft = draft.serial_number(x509.random_serial_number())
    begin, end = now - datetime.timedelta(hours=1), now + datetime.timedelta(days=days)
    return draft.not_valid_before(begin).not_valid_after(end)  # clocks differ a little


def _name(text: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    plain = form.NoEncryption()
    return bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, plain))


def _pem_of(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _write_pair(folder: Path, names: tuple[str, str], key: Any) -> None:
    """In OpenSSH's form, which Flower reads."""
    from cryptography.hazmat.primitives import serialization as form

    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    write_new(folder / names[0], private, mode=OWNER_ONLY)
    write_new(folder / names[1], public + b"\n", mode=ANYBODY_READS)
