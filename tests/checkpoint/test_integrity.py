"""Every change of a file is found; a file that cannot be read does not count as changed."""

from pathlib import Path

import pytest

from dreamer.checkpoint.integrity import damage, read_document, seal, write_document


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, dict[str, list[int]]]:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "large").write_bytes(bytes(range(256)) * 2**15)  # several pieces
    (tmp_path / "a" / "empty").write_bytes(b"")
    (tmp_path / "small").write_bytes(b"123456789")
    return tmp_path, seal(tmp_path)


def test_every_file_is_sealed_with_size_and_crc(sealed: tuple[Path, dict]) -> None:
    folder, seals = sealed
    assert seals.keys() == {"a/b/large", "a/empty", "small"}
    assert seals["small"] == [9, 0xCBF43926]  # the check value of CRC-32
    assert seals["a/empty"] == [0, 0]
    assert damage(folder, seals) == ""


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("position", [0, 2**22 - 1, 2**22, -1])
def test_one_bit_is_found(sealed: tuple[Path, dict], position: int) -> None:
    folder, seals = sealed
    flip(folder / "a/b/large", position)
    assert damage(folder, seals) == "a/b/large has changed"
    assert damage(folder, seals, "small") == ""


def test_truncated_grown_and_missing_files_are_found(sealed: tuple[Path, dict]) -> None:
    folder, seals = sealed
    (folder / "a/empty").write_bytes(b"1")
    assert damage(folder, seals) == "a/empty has 1 bytes of 0"
    (folder / "a/b/large").write_bytes(bytes(1000))
    assert damage(folder, seals) == "a/b/large has 1,000 bytes of 8,388,608"
    (folder / "a/b/large").unlink()
    assert damage(folder, seals) == "a/b/large is missing"


def test_an_unreadable_file_is_not_damaged(sealed: tuple[Path, dict]) -> None:
    folder, seals = sealed
    (folder / "small").unlink()
    (folder / "small").symlink_to(folder / "small")
    with pytest.raises(OSError, match="symbolic links"):
        damage(folder, seals)


CONTENT = {"numbers": [0.1 + 0.2, 2**60, -1e-300, float("inf")], "text": "ü\n", "none": None}


def test_a_document_reads_back_and_any_flipped_bit_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_document(file, CONTENT)
    assert read_document(file) == CONTENT
    text = file.read_bytes()
    for position in range(len(text) * 8):
        changed = bytearray(text)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        assert read_document(file) in (None, CONTENT)  # blanks and "1.0e5" may change
        file.write_bytes(text[: position // 8])
        assert read_document(file) in (None, CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
