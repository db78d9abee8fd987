"""Sealing of bytes: known answers by an independent reading of the format, and every kind of tampering."""

import base64
import hashlib
import hmac
import struct

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_agent.storage.vault import crypto

KEY = bytes(range(32))
PLACE = {"namespace": "tenant/a", "purpose": "text"}


def opened_by_hand(key: bytes, blob: bytes, *, namespace: str, purpose: str) -> bytes:
    """The format as documented, with the low-level cipher instead of AESGCM."""
    magic, version, nonce, body, tag = blob[:4], blob[4:8], blob[8:20], blob[20:-16], blob[-16:]
    assert magic == b"elm1"
    number = str(struct.unpack(">I", version)[0]).encode()
    bound = b""
    for part in (b"elm-agent", purpose.encode(), namespace.encode(), number):
        bound += struct.pack(">I", len(part)) + part
    cipher = Cipher(algorithms.AES(key), modes.GCM(nonce, tag)).decryptor()
    cipher.authenticate_additional_data(bound)
    return cipher.update(body) + cipher.finalize()


def test_a_blob_is_what_the_documentation_says() -> None:
    blob = crypto.seal(KEY, b"seven times eight", version=3, **PLACE)
    assert opened_by_hand(KEY, blob, **PLACE) == b"seven times eight"
    assert len(blob) == 4 + 4 + 12 + len(b"seven times eight") + 16


def test_a_blob_sealed_by_somebody_else_opens() -> None:
    """A fixed blob, made once with the low-level cipher: the format must never change unnoticed."""
    text = "elm1:1:AAECAwQFBgcICQoL" + "x"
    assert crypto.from_text(text) is None
    nonce = bytes(range(12))
    bound = b"".join(struct.pack(">I", len(p)) + p for p in (b"elm-agent", b"text", b"tenant/a", b"1"))
    cipher = Cipher(algorithms.AES(KEY), modes.GCM(nonce)).encryptor()
    cipher.authenticate_additional_data(bound)
    body = cipher.update(b"56") + cipher.finalize() + cipher.tag
    word = "elm1:1:" + base64.urlsafe_b64encode(nonce + body).decode().rstrip("=")
    assert word == "elm1:1:AAECAwQFBgcICQoLcjTDJGFH6hz4msOaICC3dOAj"
    blob = crypto.from_text(word)
    assert blob is not None
    assert crypto.unseal(KEY, blob, **PLACE) == b"56"


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(1, 10**9 - 1))
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_opens_again(data: bytes, namespace: str, version: int) -> None:
    blob = crypto.seal(KEY, data, namespace=namespace, purpose="tensor", version=version)
    assert crypto.unseal(KEY, blob, namespace=namespace, purpose="tensor") == data
    assert crypto.version_of(blob) == version
    assert crypto.from_text(crypto.to_text(blob)) == blob


def test_every_flipped_bit_is_found() -> None:
    blob = crypto.seal(KEY, b"a memory", version=1, **PLACE)
    for position in range(len(blob) * 8):
        broken = bytearray(blob)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(crypto.NotOpened):
            crypto.unseal(KEY, bytes(broken), **PLACE)


def test_every_truncation_and_extension_is_found() -> None:
    blob = crypto.seal(KEY, b"a memory", version=1, **PLACE)
    for cut in [blob[:length] for length in range(len(blob))] + [blob + b"\0", blob[:8] + blob[9:]]:
        with pytest.raises(crypto.NotOpened):
            crypto.unseal(KEY, cut, **PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"namespace": "tenant/b", "purpose": "text"},
        {"namespace": "tenant/a", "purpose": "tensor"},
        {"namespace": "tenant/at", "purpose": "ext"},
    ],
)
def test_a_blob_opens_only_where_it_was_sealed_for(elsewhere: dict[str, str]) -> None:
    blob = crypto.seal(KEY, b"a memory", version=1, **PLACE)
    with pytest.raises(crypto.NotOpened):
        crypto.unseal(KEY, blob, **elsewhere)
    with pytest.raises(crypto.NotOpened):
        crypto.unseal(crypto.new_key(), blob, **PLACE)


def test_nonces_do_not_repeat() -> None:
    nonces = {crypto.seal(KEY, b"", version=1, **PLACE)[8:20] for _ in range(20_000)}
    assert len(nonces) == 20_000


def test_one_blob_has_one_word() -> None:
    """The unused low bits of the last base64 digit are not free to change."""
    word = crypto.to_text(crypto.seal(KEY, b"ab", version=1, **PLACE))
    others = [word[:-1] + letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"]
    same = [other for other in others if (blob := crypto.from_text(other)) and crypto.to_text(blob) == other]
    opened = 0
    for other in same:
        try:
            crypto.unseal(KEY, crypto.from_text(other) or b"", **PLACE)
            opened += 1
        except crypto.NotOpened:
            pass
    assert opened == 1
    assert crypto.from_text(word + "=") is None
    assert crypto.from_text(word.replace("elm1:1:", "elm1:01:")) is None


def test_a_blind_name_is_a_keyed_hash() -> None:
    expected = hmac.new(KEY, b"wer fragt?", hashlib.sha256).hexdigest()
    assert crypto.blind(KEY, "wer fragt?") == f"hmac-sha256:{expected}"
    assert len(crypto.blind(KEY, "x" * 10_000)) <= 80  # the width of a digest column
    assert crypto.blind(crypto.new_key(), "wer fragt?") != crypto.blind(KEY, "wer fragt?")
