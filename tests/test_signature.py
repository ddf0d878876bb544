"""Signing with keys and certificates made here, by `cryptography`; nothing needs a network."""

from __future__ import annotations

import datetime
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from artifacts import make_artifact
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from vitrail.artifact.manifest import digest
from vitrail.cli import main
from vitrail.errors import InputError, MissingExtraError
from vitrail.signature import Signer, Trusted, sign, signature_path, verify_signature


def write_key(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)
    return key


def write_certificate(path: Path, key, name: str, issuer=None) -> x509.Certificate:
    """A root without `issuer`, else a signing certificate of that (certificate, key)."""
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    parent, signing_key = (named, key) if issuer is None else (issuer[0].subject, issuer[1])
    today = datetime.datetime.now(datetime.timezone.utc)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"),
        False,
    )
    usage |= {"decipher_only": False, "digital_signature": True, "crl_sign": False}
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(parent)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=issuer is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    mine, root, _ = (write_key(folder, name) for name in ("mine", "root", "other"))
    write_certificate(
        folder / "mine.crt", mine, "me", (write_certificate(folder / "root.crt", root, "root"), root)
    )
    write_certificate(folder / "other.crt", write_key(folder, "stranger"), "stranger")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory, keys):
    folder = make_artifact(tmp_path_factory.mktemp("signed")).path
    sign(folder, Signer(key=keys / "mine.pem"))
    return folder


@pytest.fixture
def signed(original, tmp_path) -> Path:
    """A private copy, moved with its signature."""
    shutil.copy(signature_path(original), tmp_path / "moved.sig")
    return Path(shutil.copytree(original, tmp_path / "moved"))


def test_the_right_key_holds_also_elsewhere_and_another_does_not(signed, keys):
    assert "mine.pub" in verify_signature(signed, Trusted(public_key=keys / "mine.pub"))
    with pytest.raises(InputError, match="by anyone you trust"):
        verify_signature(signed, Trusted(public_key=keys / "other.pub"))


def test_a_manifest_that_was_changed_and_made_to_fit_is_seen(signed, keys):
    """What the manifest's own digests cannot find: docs/artifact.md."""
    document = json.loads((signed / "manifest.json").read_text())
    document["task"]["probability"] = "sigmoid"
    document["digest"] = digest(document)
    (signed / "manifest.json").write_text(json.dumps(document))
    assert main(["verify", str(signed)]) == 0
    with pytest.raises(InputError, match="do not use it"):
        verify_signature(signed, Trusted(public_key=keys / "mine.pub"))


@pytest.mark.parametrize("name", [".gitignore", ".git/config", "extra.txt"])
def test_an_added_file_is_seen_whatever_its_name(signed, keys, name):
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_text("x")
    with pytest.raises(InputError, match="do not use it"):
        verify_signature(signed, Trusted(public_key=keys / "mine.pub"))


def test_a_removed_file_is_seen(signed, keys):
    (signed / "labels.txt").unlink()
    with pytest.raises(InputError, match="do not use it"):
        verify_signature(signed, Trusted(public_key=keys / "mine.pub"))


def test_certificates(signed, keys, tmp_path):
    place = sign(
        signed, Signer(key=keys / "mine.pem", certificate=keys / "mine.crt"), signature=tmp_path / "c.sig"
    )
    assert "root.crt" in verify_signature(signed, Trusted(chain=(keys / "root.crt",)), place)
    with pytest.raises(InputError, match="by anyone you trust"):
        verify_signature(signed, Trusted(chain=(keys / "other.crt",)), place)
    with pytest.raises(InputError, match="could not be signed"):
        sign(signed, Signer(key=keys / "other.pem", certificate=keys / "mine.crt"), signature=place)


def test_commands(signed, keys, capsys):
    signature_path(signed).unlink()
    assert main(["sign", str(signed), "--key", str(keys / "mine.pem")]) == 0
    assert "moved.sig written" in capsys.readouterr().out
    assert main(["verify", str(signed), "--public-key", str(keys / "mine.pub"), "--json", "-"]) == 0
    assert "mine.pub" in json.loads(capsys.readouterr().out)["signed_by"]
    assert main(["verify", str(signed), "--public-key", str(keys / "mine.pub")]) == 0
    assert capsys.readouterr().out.startswith("signed by the key")
    assert main(["verify", str(signed), "--public-key", str(keys / "other.pub")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sign", "{0}"], "--key PEM or --keyless"),
        (["sign", "{0}", "--key", "{1}/mine.pem", "--keyless"], "--key PEM or --keyless"),
        (["sign", "{0}", "--key", "{1}/none.pem"], "There is no file"),
        (["sign", "{0}", "--key", "{1}/mine.crt"], "could not be signed"),
        (["sign", "{1}", "--key", "{1}/mine.pem"], "has no manifest.json"),
        (["sign", "{0}", "--key", "{1}/mine.pem", "--signature", "{0}/a.sig"], "is inside the artifact"),
        (
            ["verify", "{0}", "--public-key", "{1}/mine.pub", "--signature", "{1}/none"],
            "There is no signature",
        ),
        (
            ["verify", "{0}", "--public-key", "{1}/mine.pub", "--signature", "{1}/mine.pem"],
            "not a signature of",
        ),
        (["verify", "{0}", "--public-key", "{1}/mine.pub", "--chain", "{1}/root.crt"], "whom to trust, once"),
        (["verify", "{0}", "--identity", "me@example.com"], "goes with its provider"),
        (["verify", "{0}", "--signature", "{1}/x.sig"], "whom to trust, once"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(signed, keys, capsys, arguments, message):
    assert main([part.format(signed, keys) for part in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_without_the_library_the_install_line_is_said(original, keys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "model_signing" else real(name, *a)
    )
    with pytest.raises(MissingExtraError, match=r"pip install .*\[sign\]"):
        verify_signature(original, Trusted(public_key=keys / "mine.pub"))
