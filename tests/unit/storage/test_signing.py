"""Ed25519: known answers of RFC 8032, files, and what is said of what does not fit."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from elm_agent.errors import InputError, SettingsError
from elm_agent.storage.ledger.signing import BadSignature, PublicKey, SigningKey
from elm_agent.storage.vault.master_keys import write_private

# RFC 8032, section 7.1, TEST 2
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_known_answer() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert key.public.raw == PUBLIC
    assert base64.b64decode(key.sign(b"\x72")) == SIGNATURE
    PublicKey(PUBLIC).verify(b"\x72", base64.b64encode(SIGNATURE).decode())


def test_a_pair_survives_its_files(tmp_path: Path) -> None:
    key, path = SigningKey.generate(), tmp_path / "key.pem"
    key.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = SigningKey.read(path)
    assert again.public == key.public
    (tmp_path / "public").write_text(f"{key.public}\n")
    (tmp_path / "public.pem").write_bytes(
        key._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for given in (str(key.public), tmp_path / "public", tmp_path / "public.pem", str(tmp_path / "public")):
        PublicKey.read(given).verify(b"content", again.sign(b"content"))


def test_what_does_not_fit_is_refused() -> None:
    key = SigningKey.generate()
    signature = key.sign(b"content")
    with pytest.raises(BadSignature, match="content was altered"):
        key.public.verify(b"Content", signature)
    with pytest.raises(BadSignature, match="another key"):
        SigningKey.generate().public.verify(b"content", signature)
    for wrong in ("", "!!!", signature[:-4], base64.b64encode(b"x" * 63).decode(), "ä"):
        with pytest.raises(BadSignature):
            key.public.verify(b"content", wrong)


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    other = generate_private_key(SECP256R1())
    write_private(tmp_path / "ec", other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "ec.pub").write_bytes(
        other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for name in ("text", "binary", "ec.pub", "none"):
        with pytest.raises(InputError):
            PublicKey.read(tmp_path / name)
    with pytest.raises(InputError, match="private key: give the public one"):
        PublicKey.read(tmp_path / "ec")
    with pytest.raises(InputError, match="another kind"):
        SigningKey.read(tmp_path / "ec")
    with pytest.raises(InputError, match="cannot be read"):
        PublicKey.read("a\0b")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(InputError, match="no private key"):
        SigningKey.read(tmp_path / "text")
    (tmp_path / "ec").chmod(0o644)
    with pytest.raises(SettingsError, match="can be read by others"):
        SigningKey.read(tmp_path / "ec")


def test_the_private_key_is_not_shown() -> None:
    assert "object" not in repr(SigningKey.generate())
