"""What the two commands are made of, without installing or starting anything."""

from __future__ import annotations

import io
import socket
import struct
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from scripts import environment, installations, markers
from scripts.client import readable
from scripts.console import UserError, bar, run
from scripts.websocket import WebSocket

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "name"),
    [("torch", "torch"), ("Pillow>=10", "pillow"), ("a_b.C[x]==1 ; y", "a-b-c"), ("# torch", ""), ("", "")],
)
def test_a_requirement_is_known_by_its_normalised_name(line, name):
    assert environment.distribution(line) == name


def test_the_development_tools_are_read_as_a_toml_parser_reads_them():
    if sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads(PYPROJECT)["project"]
        assert environment.dev_requirements(PYPROJECT) == project["optional-dependencies"]["dev"]
        listed = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if line[:1] not in "#"]
        assert listed == project["dependencies"], "the node registry reads one list, other installers the other"
    assert all(environment.distribution(line) for line in environment.dev_requirements(PYPROJECT))


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").write_text('parser.add_argument("--cpu")')
    return folder


def test_the_installation_the_pack_lies_in_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    monkeypatch.setattr(installations, "ROOT", comfyui / "custom_nodes" / "pack")
    assert installations.installed() == comfyui
    monkeypatch.setattr(installations, "ROOT", tmp_path / "elsewhere" / "pack")
    assert installations.installed() is None


def test_comfyui_path_wins_and_may_name_the_folder_above(tmp_path, monkeypatch):
    comfyui = make_comfyui(tmp_path / "portable" / "ComfyUI")
    for named in (comfyui, comfyui.parent):
        monkeypatch.setenv("COMFYUI_PATH", str(named))
        assert installations.installed() == comfyui
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(UserError, match="COMFYUI_PATH"):
        installations.installed()


def test_only_flags_that_this_comfyui_knows_are_used(tmp_path):
    found = installations.Installation(make_comfyui(tmp_path / "c"), Path(sys.executable), owned=False)
    assert found.knows("--cpu") and not found.knows("--database-url")


def test_the_archive_gives_only_its_comfyui_folder_and_nothing_outside_it(tmp_path):
    archive = tmp_path / "a.tar.gz"
    names = ("a-1/vendor/ComfyUI/main.py", "a-1/other.py", "a-1/vendor/ComfyUI/../../../evil.py")
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"ok"))
    installations.unpack(archive, tmp_path / "in" / "ComfyUI")
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")]
    assert files == ["in/ComfyUI/main.py"]


def test_a_stamp_is_fresh_only_for_what_it_was_written_for(tmp_path):
    marker, value = tmp_path / "s", markers.key("v1", ("a", "b"))
    assert not markers.up_to_date(marker, value)
    markers.write(marker, value)
    assert markers.up_to_date(marker, value) and not markers.up_to_date(marker, markers.key("v1", ("a", "c")))


def test_a_failing_command_shows_the_end_of_its_output_and_what_it_means(tmp_path):
    code = "print('No space left on device'); raise SystemExit(3)"
    hints = [("No space left", "The disk is full.")]
    with pytest.raises(UserError, match=r"(?s)Doing failed.*The disk is full.*No space left on device.*log"):
        run([sys.executable, "-c", code], title="Doing", log=tmp_path / "log", hints=hints)


def test_a_bar_is_empty_at_the_start_and_full_at_the_end():
    assert bar(0, 4, width=4) == "[....] 0/4" and bar(4, 4, width=4) == "[####] 4/4"


def test_a_refusal_is_said_in_words():
    reason = {"message": "Value too small", "details": "width"}
    answer = '{"error": {"message": "Bad", "details": ""}, "node_errors": {"7": {"class_type": "N", "errors": [%s]}}}'
    text = readable(answer % str(reason).replace("'", '"'))
    assert text == "Bad\nN (node 7): Value too small: width"


def frame(opcode: int, data: bytes, *, final: bool = True) -> bytes:
    size = len(data)
    if size < 126:
        length = bytes([size])
    else:
        length = struct.pack(">BH", 126, size) if size < 65536 else struct.pack(">BQ", 127, size)
    return bytes([(0x80 if final else 0) | opcode]) + length + data


@pytest.fixture
def websocket_server():
    """A server that accepts one WebSocket and sends the frames it was given."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(frames: list[bytes]) -> int:
        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + b"".join(frames))
                connection.settimeout(5)
                while connection.recv(4096):
                    pass

        threading.Thread(target=answer, daemon=True).start()
        return listener.getsockname()[1]

    yield serve
    listener.close()


def test_messages_of_every_length_and_in_pieces_arrive_whole(websocket_server):
    long, huge = b"x" * 300, bytes(range(256)) * 300
    pieces = [frame(1, b"he", final=False), frame(9, b"ping"), frame(0, b"llo")]
    port = websocket_server([frame(1, b"a"), frame(2, long), frame(2, huge), *pieces, frame(8, b"")])
    connection = WebSocket("127.0.0.1", port, "/ws")
    assert [connection.receive(5) for _ in range(5)] == ["a", long, huge, "hello", None]
    connection.close()


def test_silence_is_a_timeout(websocket_server):
    connection = WebSocket("127.0.0.1", websocket_server([]), "/ws")
    with pytest.raises(TimeoutError):
        connection.receive(0.1)
    connection.close()
