"""The shape of the house, held by its imports: floors, purity, and one door to each driver library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "gateway"

FLOORS = (
    {"cli", "__main__", "app", "conformance", "demo", "testing"},
    {"config", "intake", "supervisor", "health", "control"},
    {"connectors", "normalise", "rules", "buffer", "uplink", "commands", "ingest"},
    {"protocol", "codec", "clock", "disk", "logs", "points"},
    {"model", "errors", "settings"},
)
STAGES = FLOORS[2]

# Who may import a driver library: the seam, and nobody else.
DOORS = {
    "serial": {"connectors/port.py", "connectors/ports.py"},
    "bleak": {"connectors/ble/link.py", "connectors/ble/peripheral.py"},
    "cryptography": {"connectors/ble/cipher.py"},
    "dbus_fast": {"connectors/ble/link.py", "connectors/ble/peripheral.py", "testing/bluez.py"},
    "paho": {"connectors/mqtt/link.py", "connectors/mqtt/scan.py", "connectors/mqtt/sockets.py", "demo/publisher.py"},
    "websockets": {"uplink", "ingest", "demo", "conformance/peer.py"},
    "sdnotify": {"health"},
    "sqlite3": {"buffer", "commands", "ingest", "demo"},
    "rich": {"cli", "demo", "ingest", "control", "terminal"},
    "mmap": {"buffer/ring.py"},
}
IMPURE = {
    "asyncio",
    "socket",
    "ssl",
    "time",
    "random",
    "secrets",
    "logging",
    "threading",
    "subprocess",
    "sqlite3",
    "os",
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of all modules imported at run time, `from gateway.a import b` as `gateway.a.b`."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """`gateway.buffer.store.Store` → `buffer`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    raise AssertionError(f"gateway/{name} stands on no floor: add it to FLOORS")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_imports_point_down_and_stages_do_not_know_each_other(path: Path) -> None:
    here = relative(path).removesuffix(".py").split("/")[0]
    if here == "__init__":
        return
    for module in imports(path):
        if not module.startswith("gateway.") or room(module) in (here, "__version__"):
            continue
        there = room(module)
        assert floor(there) >= floor(here), f"{relative(path)} imports {module}, which lies above it"
        assert not (here in STAGES and there in STAGES), f"stage {here} imports stage {there}: {module}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if ast.get_docstring(ast.parse(p.read_text()), clean=False)], ids=relative
)
def test_a_module_that_says_pure_is_pure(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    if not doc.startswith("Pure"):
        return
    touched = {module.split(".")[0] for module in imports(path)} & IMPURE
    assert not touched, f"{relative(path)} says Pure and imports {', '.join(sorted(touched))}"


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_driver_libraries_come_in_by_their_own_door(path: Path) -> None:
    name = relative(path)
    for module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        if doors is None:
            continue
        allowed = any(name == door or name.startswith(f"{door}/") or name == f"{door}.py" for door in doors)
        assert allowed, f"{name} imports {module}: only {', '.join(sorted(doors))} may"


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_nets_that_catch_everything_hang_in_four_places_only(path: Path) -> None:
    name = relative(path)
    if name.startswith(("supervisor/", "commands/router", "connectors/registry", "cli")):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            last = node.body[-1]
            if isinstance(last, ast.Raise) and last.exc is None:
                continue  # it cleans up and passes on
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{name}:{node.lineno} catches {caught}"


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{relative(path)} has no docstring"
