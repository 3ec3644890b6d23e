"""The parts of the two commands, without an installation or a server."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts import console, environment, installations, markers, run
from scripts.console import UserError, bar

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
    assert all(environment.distribution(line) for line in environment.dev_requirements(PYPROJECT))


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").write_text('parser.add_argument("--cpu")')
    return folder


def test_the_installation_that_contains_the_pack_is_found(tmp_path, monkeypatch):
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


def test_only_flags_of_this_version_of_comfyui_are_used(tmp_path):
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


def test_a_marker_is_up_to_date_only_for_the_inputs_it_was_written_for(tmp_path):
    marker, value = tmp_path / "s", markers.key("v1", ("a", "b"))
    assert not markers.up_to_date(marker, value)
    markers.write(marker, value)
    assert markers.up_to_date(marker, value) and not markers.up_to_date(marker, markers.key("v1", ("a", "c")))


def test_a_failing_command_shows_the_end_of_its_output_and_its_meaning(tmp_path):
    code = "print('No space left on device'); raise SystemExit(3)"
    hints = [("No space left", "The disk is full.")]
    with pytest.raises(UserError, match=r"(?s)Doing failed.*The disk is full.*No space left on device.*log"):
        console.run([sys.executable, "-c", code], title="Doing", log=tmp_path / "log", hints=hints)


def test_a_bar_is_empty_at_the_start_and_full_at_the_end():
    assert bar(0, 4, width=4) == "[....] 0/4" and bar(4, 4, width=4) == "[####] 4/4"


BOOTSTRAP = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"aiohttp", "yarl", "torch", "numpy", "PIL"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
import scripts.run, scripts.test
print(scripts.run.options(["a star", "--seed", "3"]).seed)
"""


def test_the_two_commands_start_with_the_standard_library_alone(tmp_path):
    command = [sys.executable, "-c", BOOTSTRAP, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "3", done.stderr


def test_a_wrong_option_ends_the_command_before_anything_is_installed(monkeypatch):
    monkeypatch.setattr(installations, "find", lambda: pytest.fail("it went on"))
    with pytest.raises(SystemExit, match="2"):
        run.main(["--no-such-option"])


def test_generate_runs_with_the_python_that_was_found_and_gets_all_options(monkeypatch, tmp_path):
    found = installations.Installation(tmp_path, tmp_path / "python", owned=True)
    monkeypatch.setattr(installations, "find", lambda: found)
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, command: commands.append(command))
    monkeypatch.setattr("os.name", "posix")
    run.main(["a star", "--output", "x.png"])
    assert commands == [[str(found.python), str(ROOT / "scripts" / "generate.py"), "a star", "--output", "x.png"]]
